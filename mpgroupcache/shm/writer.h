/* What the coordinator does with the segments. It is one thread, and the only writer of every arena.
 *
 * Guarantees: a block that a reader has pinned is neither changed nor reused; a word is never moved in place; what is
 * committed is enough for every published block; a value that cannot fit evicts nothing.
 * This code assumes that calls do not overlap, and that its caller holds the control segment's writer lock.
 */
#ifndef MPGROUPCACHE_WRITER_H
#define MPGROUPCACHE_WRITER_H

#include "heap.h"
#include "rate.h"

#define MGC_NO_SLOT 0xffffffffu

/* Errors, beside negative errnos. */
#define MGC_TOO_LARGE (-10001) /* larger than max_entry: could never be cached */
#define MGC_NO_ROOM (-10002)   /* too much of the arena is pinned or being filled, or memory is short */

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
    } lists[2];

    uint64_t descriptor, index_words, index_used;
    uint64_t index_committed, index_limit; /* ends of what is committed and reserved for generations */

    struct mgc_offsets retiring; /* unpublished, not yet scanned for */
    struct mgc_offsets limbo;
    uint64_t commit_limit; /* larger commits are not tried: one of twice that failed. UINT64_MAX: none has failed */
};

struct mgc_reservation {
    uint64_t offset;
    uint32_t slot;
    uint8_t *value;
    uint64_t length;
};

struct mgc_plan {
    uint64_t slots, slots_offset, index_offset, entries_offset, size;
};

struct mgc_adopted {
    uint64_t entries, dropped;
};

struct mgc_arena_options {
    uint32_t arena, incarnation;
    uint64_t budget, max_entry, seed;
    uint32_t checksums; /* 1: of values, too */
    uint8_t boot_id[16];
};

/* ---- space.c: where the parts of a segment lie, and their memory ---- */

/* Where the parts of an arena of this budget lie. */
struct mgc_plan mgc_arena_plan(uint64_t budget);
/* The address range that it reserves; 0 where words could not name all of its blocks. */
uint64_t mgc_arena_size(uint64_t budget);

/* Commits memory to a range of the segment. 0 or a negative errno. */
int mgc_commit(int fd, uint64_t offset, uint64_t bytes);
int mgc_arena_commit(struct mgc_arena *arena, uint64_t offset, uint64_t bytes);

/* ---- control.c ---- */

/* Formats a control segment of MGC_CONTROL_SIZE and commits its first regions. 0, or a negative errno (ENOSPC). */
int mgc_control_format(struct mgc_control *control, uint8_t *base, int fd, const uint8_t boot_id[16]);
/* Takes over a control segment of MGC_CONTROL_SIZE whose coordinator is dead, with its regions, rows and totals. 0;
 * -EPROTO: another layout; -ESTALE: of another boot, or not LIVE; -EUCLEAN: damaged. Only the first changes anything. */
int mgc_control_adopt(struct mgc_control *control, uint8_t *base, int fd, const uint8_t boot_id[16]);
void mgc_control_close(struct mgc_control *control);
void mgc_control_retire(struct mgc_control *control);

/* Retires a segment of either kind that has no writer. It may be damaged: what has no magic is left alone. */
void mgc_segment_retire(int fd);

/* Adds a group's row. Its number, or -ENOSPC after MGC_MAX_GROUPS. */
int mgc_control_add_group(struct mgc_control *control, const uint8_t *name, size_t length, uint64_t budget);

uint32_t mgc_control_groups(const struct mgc_control *control);
const struct mgc_group_row *mgc_control_group(const struct mgc_control *control, uint32_t group);

/* Regions of workers that were alive at the last reap. */
uint32_t mgc_control_attached(const struct mgc_control *control);

/* Counts a get that came from a peer. */
void mgc_control_count_request(struct mgc_control *control, uint32_t group);

/* Commits regions until at least `spare` are free above all claimed ones (a fork needs one above its own), and returns how
 * many are; fewer only when memory or numbers are out. */
uint32_t mgc_control_spare_regions(struct mgc_control *control, uint32_t spare);

/* Frees the regions of workers that are gone, and returns their number. */
uint32_t mgc_control_reap(struct mgc_control *control);

/* ---- arena.c ---- */

/* The private half of a writer that has nothing yet. */
void mgc_arena_begin(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control,
                     const struct mgc_plan *plan, uint64_t budget, uint64_t max_entry);

/* Formats an arena of mgc_arena_size(). 0, or a negative errno: ENOSPC when not even its first pages can be committed. */
int mgc_arena_format(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control,
                     const struct mgc_arena_options *options);
/* Tells attached workers to let go. The segment may be unlinked afterwards. */
void mgc_arena_retire(struct mgc_arena *arena);
void mgc_arena_close(struct mgc_arena *arena);

/* Makes room for an entry and fills in its key. The value is the caller's to fill; then publish or abandon. */
int mgc_arena_reserve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t value_length, uint32_t list,
                      struct mgc_reservation *reservation);
/* Publishes, in place of the key's entry if there is one; then the key's rate goes on. */
void mgc_arena_publish(struct mgc_arena *arena, const struct mgc_reservation *reservation);
void mgc_arena_abandon(struct mgc_arena *arena, const struct mgc_reservation *reservation);

/* The coordinator's own lookup; a find is a touch. Returns 0 or 1. The bytes are good until the next call. */
int mgc_arena_find(struct mgc_arena *arena, const uint8_t *key, size_t key_length, const uint8_t **value,
                   uint64_t *value_length);
/* Find for a peer's request. If the key is there it counts as one, as a hit, and in the key's rate, which is told to 3 %. */
int mgc_arena_serve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, const uint8_t **value,
                    uint64_t *value_length, double *minute_qps);
/* A key's gets per second of all workers and peers, as of the last drain; 0 where it is not cached. Not a touch. */
double mgc_arena_minute_qps(const struct mgc_arena *arena, const uint8_t *key, size_t key_length);
int mgc_arena_remove(struct mgc_arena *arena, const uint8_t *key, size_t key_length);

/* Frees what was in limbo and is no longer pinned. */
void mgc_arena_sweep(struct mgc_arena *arena);

/* ---- adopt.c ---- */

/* Takes over the arena of a dead coordinator, a file of `size` bytes: its entries, their order, and what views still hold.
 * The control segment is adopted before. What is damaged is dropped; `adopted` says how much. 0; -EPROTO: another layout;
 * -ESTALE: of another boot, not LIVE, another group's, or with other checksums; -EUCLEAN: nothing of it can be trusted;
 * -ENOMEM. */
int mgc_arena_adopt(struct mgc_arena *arena, uint8_t *base, uint64_t size, int fd, struct mgc_control *control,
                    const struct mgc_arena_options *options, struct mgc_adopted *adopted);

/* ---- index.c: words of the index ---- */

int mgc_index_init(struct mgc_arena *arena);
/* Where the key's word is, or NULL. */
_Atomic uint64_t *mgc_index_find(const struct mgc_arena *arena, uint64_t hash, const uint8_t *key, size_t key_length);
/* Where the slot's word is; the slot is published. */
_Atomic uint64_t *mgc_index_place(const struct mgc_arena *arena, uint32_t slot);
/* An empty place for a hash; grows the index when it is time. NULL when both buckets are full and it cannot grow, or
 * should not: then the least recently used slot of the two is in *crowd. */
_Atomic uint64_t *mgc_index_room(struct mgc_arena *arena, uint64_t hash, uint32_t *crowd);

/* ---- lru.c: the order of slots ---- */

void mgc_lru_init(struct mgc_arena *arena);
/* A slot for a new entry, in no list; MGC_NO_SLOT when their table cannot grow. */
uint32_t mgc_slot_take(struct mgc_arena *arena);
void mgc_slot_give(struct mgc_arena *arena, uint32_t slot);
void mgc_lru_push(struct mgc_arena *arena, uint32_t slot, uint64_t tick);
void mgc_lru_unlink(struct mgc_arena *arena, uint32_t slot);
void mgc_lru_touch(struct mgc_arena *arena, uint32_t slot);
/* The slot whose entry a worker hit; MGC_NO_SLOT when it is not published any more. */
uint32_t mgc_lru_touched(const struct mgc_arena *arena, uint64_t word);
/* Merges touches, newest first, of this arena alone. */
struct mgc_lru_cursor {
    uint32_t at[2];
};
void mgc_lru_begin(const struct mgc_arena *arena, struct mgc_lru_cursor *cursor);
void mgc_lru_merge(struct mgc_arena *arena, struct mgc_lru_cursor *cursor, const struct mgc_touched *touched);

/* ---- touches.c: hits of workers, for order and rates ---- */

/* Brings the touches of all regions into the LRU lists, in their order in time, and counts them in the rates, as of
 * control->now. Returns how many there were. */
size_t mgc_control_drain(struct mgc_control *control);

/* ---- pins.c: the writer's half of the pins, by which a block is given up ---- */

/* Gathers the pins of all regions in control->pins, of which mgc_pinned() then tells. What a scan guarantees depends on
 * the fence in front of it: the caller's. */
void mgc_control_scan(struct mgc_control *control);
int mgc_pinned(const struct mgc_control *control, uint32_t arena, uint64_t offset);
/* Whether any pin names a place in the range. Looks at all pins. */
int mgc_pinned_within(const struct mgc_control *control, uint32_t arena, uint64_t from, uint64_t to);

/* Takes an entry out of index and list. The block goes to `retiring`. */
void mgc_unpublish(struct mgc_arena *arena, uint32_t slot, _Atomic uint64_t *place, uint64_t word);
/* The second half of the evict rule: frees the blocks in `retiring` and limbo that no pin names. */
void mgc_retire(struct mgc_arena *arena);
int mgc_offsets_add(struct mgc_offsets *offsets, uint64_t offset);

/* ---- evict.c: making room ---- */

/* Evicts until `bytes` more of keys and values are within the budget. `keep` is a slot that must stay. 0 or MGC_NO_ROOM. */
int mgc_evict_for_budget(struct mgc_arena *arena, uint64_t bytes, uint32_t keep);
/* Evicts the next victim. 0, or MGC_NO_ROOM when there is none. */
int mgc_evict_one(struct mgc_arena *arena, uint32_t keep);
/* A block of `bytes`, evicting and committing as needed; 0 when there is no way. */
uint64_t mgc_evict_for_block(struct mgc_arena *arena, uint64_t bytes, uint32_t keep);
void mgc_evict(struct mgc_arena *arena, uint32_t slot);

/* ---- check.c ---- */

/* Calls `report` with a line for each inconsistency, and returns their number. */
size_t mgc_arena_check(const struct mgc_arena *arena, void (*report)(void *context, const char *line), void *context);

/* ---- shared ---- */

static inline uint64_t mgc_page_up(uint64_t bytes) { return (bytes + MGC_PAGE - 1) & ~(uint64_t)(MGC_PAGE - 1); }

static inline uint64_t mgc_list_bytes(const struct mgc_arena *arena, uint32_t list) {
    return atomic_load_explicit(&arena->header->lists[list].bytes, memory_order_relaxed);
}

static inline struct mgc_region *mgc_region_at(const struct mgc_control *control, uint32_t i) {
    return (struct mgc_region *)(control->base + MGC_REGIONS_OFFSET + i * MGC_REGION_SIZE);
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

#endif
