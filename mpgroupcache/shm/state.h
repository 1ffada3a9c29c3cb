/* What the coordinator remembers of the segments: its private memory, on which every floor of the writer works. */
#ifndef MPGROUPCACHE_STATE_H
#define MPGROUPCACHE_STATE_H

#include "ages.h"
#include "heap.h"
#include "rate.h"
#include "wheel.h"

#define MGC_NO_SLOT 0xffffffffu

/* Errors, beside negative errnos. */
#define MGC_TOO_LARGE (-10001) /* larger than max_entry: could never be cached */
#define MGC_NO_ROOM (-10002)   /* too much of the arena is pinned or being filled, or memory is short */

/* Beside MGC_MAIN and MGC_HOT, the list of entries of former eras. Nobody finds, touches or adopts them; they keep their
 * words, slots and blocks until these are wanted. */
#define MGC_DEAD 2u

struct mgc_arena;

struct mgc_touched {
    uint64_t word, time;
};

struct mgc_control {
    uint8_t *base;
    int fd;
    /* What the header says, too. It is not read back: whoever may write the segment, as every worker may, could have the
     * coordinator go beyond its end. */
    uint32_t regions, groups;
    uint64_t tails[MGC_MAX_REGIONS]; /* touches of each region that were drained */
    struct mgc_arena *arenas[MGC_MAX_GROUPS];
    uint64_t *pins; /* the last scan's: a set of pin words, hashed; 0: empty */
    size_t pin_count, pin_room;
    struct mgc_touched *touched;
    size_t touched_room;
    uint64_t touches_lost; /* overwritten before they were drained */
    uint64_t drains_paid;  /* mgc_nanoseconds() at which drains will have been a tenth of the time: see touches.h */
    uint32_t now;          /* by which rates age, in MGC_RATE_SECONDs since the segment was made; the caller tells */
};

struct mgc_link { /* private half of a slot */
    uint32_t newer, older;
    uint64_t hash;
    struct mgc_rate rate; /* valid while the slot is published */
};

struct mgc_offsets { /* a growing array */
    uint64_t *items;
    size_t count, room;
};

struct mgc_arena {
    uint8_t *base;
    int fd;
    struct mgc_arena_header *header;
    struct mgc_control *control;
    struct mgc_heap heap;
    uint64_t budget, max_entry; /* bytes of keys and values */
    uint64_t filling;           /* of reserved blocks: they count towards the budget */
    uint64_t entries_limit;     /* end of the address range */

    struct mgc_slot *slots;
    struct mgc_link *links;
    uint32_t slot_count, slots_committed, slots_limit, links_room;
    uint32_t unused_slots; /* chained by links[].older */
    struct mgc_list {
        uint32_t newest, oldest;
    } lists[3]; /* MGC_MAIN, MGC_HOT, MGC_DEAD */
    struct {
        uint64_t bytes, items;
    } dead;                  /* of the third: they count towards the budget until they are reclaimed */
    struct mgc_wheel *wheel; /* slots of entries that are to be reclaimed at a time; NULL: there was none yet */
    uint64_t expired;        /* entries that were, and of which nobody has been told */
    uint64_t next_version;   /* the header's */

    uint64_t descriptor, index_words, index_used;
    uint64_t index_committed, index_limit; /* ends of what is committed and reserved for generations */

    struct mgc_offsets retiring; /* unpublished, not yet scanned for */
    struct mgc_offsets limbo;
    uint64_t reserve;      /* bytes of its file system that it leaves free */
    uint64_t commit_limit; /* larger commits are not tried: one of twice that failed. UINT64_MAX: none has failed */
};

static inline uint64_t mgc_list_bytes(const struct mgc_arena *arena, uint32_t list) {
    return atomic_load_explicit(&arena->header->lists[list].bytes, memory_order_relaxed);
}

static inline struct mgc_region *mgc_region_at(const struct mgc_control *control, uint32_t i) {
    return (struct mgc_region *)(control->base + MGC_REGIONS_OFFSET + i * MGC_REGION_STRIDE);
}

static inline void mgc_add(_Atomic uint64_t *counter, uint64_t n) { /* the writer's own counters */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline uint64_t mgc_slot_word(const struct mgc_arena *arena, uint32_t slot) {
    return atomic_load_explicit(&arena->slots[slot].word, memory_order_relaxed);
}

static inline struct mgc_block *mgc_slot_block(const struct mgc_arena *arena, uint32_t slot) {
    return mgc_heap_block(&arena->heap, mgc_word_offset(mgc_slot_word(arena, slot)));
}

static inline uint64_t mgc_entry_bytes(const struct mgc_block *block) { return block->key_length + block->value_length; }

/* Whether an entry came after the last clear. */
static inline int mgc_is_of_this_era(const struct mgc_arena *arena, const struct mgc_block *block) {
    return block->era == atomic_load_explicit(&arena->header->era, memory_order_relaxed);
}

/* The instance's clock. Reading it costs a quarter of a lookup: asked for where something has an age. */
static inline uint64_t mgc_arena_clock(const struct mgc_arena *arena) {
    return mgc_clock((const struct mgc_control_header *)arena->control->base);
}

static inline struct mgc_group_row *mgc_row_of(const struct mgc_control *control, uint32_t group) {
    return (struct mgc_group_row *)(control->base + MGC_GROUPS_OFFSET) + group;
}

/* When an entry that is AGED is to be reclaimed. What workers may do to the group's row makes it a wrong time, no more. */
static inline uint64_t mgc_entry_kept_until(const struct mgc_arena *arena, const struct mgc_block *block) {
    return mgc_kept_until(mgc_ages_of(block), mgc_row_of(arena->control, arena->header->arena)->ages.stale_if_error);
}

#endif
