/* The one place of the memory layout that the coordinator (the only writer of arenas) and its workers share.
 *
 * CONTROL SEGMENT, one for an instance
 *
 *   offset          size                what
 *   0               MGC_PAGE            struct mgc_control_header
 *   GROUPS_OFFSET   256 rows            struct mgc_group_row: name, id (= row number), budget, peers' requests
 *   TOTALS_OFFSET   256 rows            struct mgc_counters: what dead workers counted, and the coordinator itself
 *   REGIONS_OFFSET  MGC_REGION_STRIDE * struct mgc_region, one for each worker; the first `region_count` are committed, without
 *                                       the padding behind each
 *
 *   File locks (F_OFD_SETLK) on single bytes of this file: byte 0 is the writer's, byte 1 + i is region i's, and the one
 *   behind them the gate's: whoever becomes the writer, or may have to remove the instance, goes through it one at a time.
 *
 *   state of a region    who writes it                        next
 *   FREE                 the coordinator, holding its lock    LIVE
 *   LIVE                 the worker, holding its lock         LEAVING, or FREE as below
 *   LEAVING              the worker, which is about to end    FREE, by the coordinator, once it can take the lock itself:
 *                                                             the worker is dead, or has unmapped the region
 *
 * ARENA SEGMENT, one for a group with cache_bytes > 0
 *
 *   offset          size                what
 *   0               MGC_PAGE            struct mgc_arena_header
 *   slots_offset    24 B an entry       struct mgc_slot: what adoption needs beyond the published words; writer only
 *   index_offset    generations         buckets of 8 words; generation n has twice the buckets of n - 1 and lies behind it.
 *                                       The memory of a generation never becomes anything else: a reader that was
 *                                       stopped may hold a pointer into an old one for minutes.
 *   entries_offset  blocks              struct mgc_block, its key, what its flags say, its value; blocks follow each other
 *                                       without gaps up to `entries_end`, which bounds what is committed
 *
 *   Each part has its whole address range reserved in the sparse file; memory is committed from its start, in steps.
 *
 * A segment is mapped whole, a region alone, too. What is mapped begins and ends on multiples of MGC_MAP, since kernels with
 * larger pages than MGC_PAGE refuse others. Memory is committed by MGC_PAGE; what these make of it is whole pages of theirs.
 *
 *   state of a segment   meaning
 *   FORMATTING           its creator has not finished, or died
 *   LIVE                 in use
 *   RETIRED              unlinked, or about to be: attached workers let go of it
 *
 *   state of a block     word in index   slot of the block    who may read it
 *   free                 none            MGC_SLOT_FREE        the writer
 *   reserved             none            its slot             the writer, who is filling it
 *   published            one             its slot             everybody, with a pin
 *   limbo                none            MGC_SLOT_NONE        readers that pinned it before it was unpublished
 *   limbo of a dead      none            MGC_SLOT_RANGE       the same: adoption does not know where in it which blocks
 *   coordinator's                                             were, so that a pin on any of it keeps all of it
 *
 * Integers are in the host's byte order: a segment never leaves its machine. All shared fields that change after their
 * publication are _Atomic; each names its writer, its readers, and the memory order.
 */
#ifndef MPGROUPCACHE_LAYOUT_H
#define MPGROUPCACHE_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define MGC_LAYOUT_VERSION 6u
#define MGC_CONTROL_MAGIC 0x6c72746e6f63676dull /* "mgcontrl" */
#define MGC_ARENA_MAGIC 0x616e65726163676dull   /* "mgcarena" */

#define MGC_PAGE 4096u
#define MGC_MAP 65536u /* the largest page of any kernel that this runs on: of some arm64 and ppc64 */
#define MGC_MAP_UP(bytes) (((bytes) + MGC_MAP - 1) & ~(uint64_t)(MGC_MAP - 1))
#define MGC_LINE 64u

enum { MGC_SEGMENT_FORMATTING = 0, MGC_SEGMENT_LIVE = 1, MGC_SEGMENT_RETIRED = 2 };

/* ---- Control segment ---------------------------------------------------------------------------------------------- */

#define MGC_MAX_GROUPS 256u   /* a touch names its arena in 8 bits */
#define MGC_MAX_REGIONS 4096u /* workers of one host at a time; address space only, until they come */
#define MGC_REGION_STEP 16u   /* regions committed at a time */
#define MGC_GROUP_NAME_BYTES 255u

#define MGC_PINS 1024u    /* live views of one process; pin 0 is the one under which values are copied */
#define MGC_COPY_PIN 0u
#define MGC_TOUCHES 1024u /* hits of one process between two drains before the oldest are forgotten */

struct mgc_control_header {
    uint64_t magic;
    uint32_t version;
    _Atomic uint32_t state;        /* coordinator release; workers acquire at attach */
    uint8_t boot_id[16];           /* of the kernel's boot that made it: another boot's pids and ticks mean nothing */
    _Atomic uint32_t region_count; /* committed regions; coordinator release, workers acquire; only grows */
    _Atomic uint32_t group_count;  /* used rows; coordinator release, workers acquire; only grows */
    _Atomic uint32_t fold_epoch;   /* odd while counters of a dead worker move into the totals (a sequence lock) */
    uint32_t reserved;
    _Atomic uint64_t alive; /* CLOCK_BOOTTIME in ns at the coordinator's last tick; it alone stores it, relaxed */
    uint8_t pad0[MGC_LINE - 56];
    /* Ages are told by the instance's clock, which is CLOCK_BOOTTIME and this many ns. Random from the start, so that nothing
     * comes to rely on where it begins; tests move it. All load it relaxed. */
    _Atomic uint64_t clock_offset;
};

/* How long a group's values live where they do not say so themselves: ns; MGC_FOREVER: not bounded. */
struct mgc_group_ages {
    uint64_t ttl, stale, stale_if_error, copy_ttl, negative_ttl; /* negative_ttl 0: the absence of a value is not kept */
    double jitter; /* the part of a ttl, at most, by which it is shortened */
};

struct mgc_group_row { /* name and budget are immutable once group_count covers it */
    uint64_t budget;   /* bytes of keys and values; 0: caching off */
    _Atomic uint64_t server_requests; /* gets that came from peers; here, since the coordinator alone counts them */
    /* Changes of the group's values that were begun. Coordinator: release, before it clears or replaces any word for the
     * change, and so before it answers; whoever is to share what it has loaded: acquire. */
    _Atomic uint64_t changes;
    _Atomic uint64_t cleared_hits, cleared_loads; /* as they were counted when the group was cleared last */
    struct mgc_group_ages ages; /* of the last declaration; the coordinator's own, and kept here for the next one */
    uint32_t name_length;
    uint8_t name[260];
};

/* One process's, or the total, counts of one group, in cache lines of its own. Written by its worker alone (plain
 * increments with relaxed stores), read by everybody (relaxed): a sum over regions is a snapshot, not a transaction. */
struct mgc_counters {
    _Atomic uint64_t main_hits;
    _Atomic uint64_t hot_hits;
    _Atomic uint64_t loads; /* gets that were no hits */
    _Atomic uint64_t loads_deduped;
    _Atomic uint64_t local_loads;
    _Atomic uint64_t local_load_errs;
    _Atomic uint64_t peer_loads;
    _Atomic uint64_t peer_errors;
    _Atomic uint64_t stale_hits; /* hits, too */
    _Atomic uint64_t absent_hits;
    _Atomic uint64_t refreshes; /* from here on the coordinator counts */
    _Atomic uint64_t refresh_errors;
    _Atomic uint64_t removals;
    _Atomic uint64_t expired;
    uint64_t pad[2];
};
#define MGC_COUNTERS (sizeof(struct mgc_counters) / sizeof(uint64_t))

struct mgc_touch {
    _Atomic uint64_t word; /* the index word that was hit: names block and tag, so that a reused block is told */
    _Atomic uint64_t time; /* mgc_ticks(), its low 8 bits replaced by the arena's id */
};

enum { MGC_REGION_FREE = 0, MGC_REGION_LIVE = 1, MGC_REGION_LEAVING = 2 };

struct mgc_region {
    _Atomic uint32_t state;      /* see the table */
    _Atomic uint32_t generation; /* counts claims; the claimer writes it before LIVE (release) */
    _Atomic uint32_t pid;        /* of the claimer, for people */
    uint8_t pad0[MGC_LINE - 12];
    /* Pins below this have been used. Worker: raises it before the first store to the pin above; the fence of get() orders
     * both before its second load of the word. Coordinator: relaxed, behind the fence of the evict rule. */
    _Atomic uint32_t pin_limit;
    uint8_t pad1[MGC_LINE - 4];
    /* Touches ever written. Worker: release, after the touch itself; coordinator: acquire. */
    _Atomic uint64_t touch_head;
    uint8_t pad2[MGC_PAGE - 2 * MGC_LINE - 8];
    /* 0, or mgc_pin_word(). Worker: release, see get() and unpin(); coordinator: acquire in scans, release to zero those
     * of a dead worker. */
    _Atomic uint64_t pins[MGC_PINS];
    struct mgc_touch touches[MGC_TOUCHES];
    struct mgc_counters counters[MGC_MAX_GROUPS];
};

#define MGC_GROUPS_OFFSET ((size_t)MGC_PAGE)
#define MGC_TOTALS_OFFSET (MGC_GROUPS_OFFSET + MGC_MAX_GROUPS * sizeof(struct mgc_group_row))
#define MGC_CONTROL_HEAD (MGC_TOTALS_OFFSET + MGC_MAX_GROUPS * sizeof(struct mgc_counters)) /* committed at once */
#define MGC_REGIONS_OFFSET ((size_t)MGC_MAP_UP(MGC_CONTROL_HEAD))
#define MGC_REGION_SIZE sizeof(struct mgc_region)                     /* of it is committed ... */
#define MGC_REGION_STRIDE ((size_t)MGC_MAP_UP(sizeof(struct mgc_region))) /* ... and of it is mapped */
#define MGC_CONTROL_SIZE (MGC_REGIONS_OFFSET + MGC_MAX_REGIONS * MGC_REGION_STRIDE)
#define MGC_CONTROL_COMMITTED(regions) (MGC_CONTROL_HEAD + (size_t)(regions) * MGC_REGION_SIZE) /* bytes, with gaps */

#define MGC_WRITER_LOCK 0u
#define MGC_REGION_LOCK(i) (1u + (i))
#define MGC_GATE_LOCK MGC_REGION_LOCK(MGC_MAX_REGIONS)

/* ---- Arena segment ------------------------------------------------------------------------------------------------ */

#define MGC_GRANULE 16u        /* blocks begin and end on multiples of it; 64 would waste 24 B more of each entry */
#define MGC_BUCKET_WORDS 8u    /* one cache line */
#define MGC_INDEX_MIN_LOG2 6u  /* buckets of the first generation: one page */
#define MGC_MAX_KEY (64u << 10)

/* An index word: the key's tag in the upper 28 bits, the block's offset in granules in the lower 36. Never 0, since the
 * header lies at offset 0. */
#define MGC_TAG_SHIFT 36u
#define MGC_BLOCK_MASK ((1ull << MGC_TAG_SHIFT) - 1)
#define MGC_MAX_ARENA ((MGC_BLOCK_MASK + 1) * MGC_GRANULE) /* bytes of address range that a word can name: 1 TiB */

/* An index descriptor: the generation's offset in pages, and the logarithm of its number of buckets. */
#define MGC_INDEX_LOG2_BITS 8u

struct mgc_arena_header {
    uint64_t magic;
    uint32_t version;
    _Atomic uint32_t state; /* coordinator release; checked at attach and by post-mortems: get() sees index = 0 */
    uint8_t boot_id[16];
    uint64_t seed; /* of the key hash */
    uint64_t size; /* of the segment's address range */
    uint64_t budget;
    uint64_t slots_offset, index_offset, entries_offset;
    uint32_t arena;       /* the group's id */
    uint32_t incarnation; /* of this group's arenas: random, so that none is taken for another */
    uint32_t checksums;   /* 1: of values, too */
    uint8_t pad0[MGC_LINE * 2 - 92];
    /* Read by every get(), written seldom. */
    _Atomic uint64_t index;       /* descriptor in force; 0: retired. coordinator release, readers acquire */
    _Atomic uint64_t entries_end; /* offset; coordinator: before the release of any word beyond the old one */
    /* Entries of another era are dead: to raise it clears the cache. Coordinator: release; readers: relaxed, behind the
     * fence of get(). */
    _Atomic uint32_t era;
    uint8_t pad1[MGC_LINE - 20];
    /* Written at every change of the cache, read by stats (relaxed). */
    struct mgc_list_stats {
        _Atomic uint64_t bytes; /* keys and values */
        _Atomic uint64_t items;
        _Atomic uint64_t evictions;
    } lists[2]; /* MGC_MAIN, MGC_HOT */
    _Atomic uint64_t committed;   /* bytes of the segment that hold memory */
    _Atomic uint64_t limbo_bytes; /* blocks unpublished, but pinned when last looked at */
    /* The writer's own, for whoever adopts the segment: offsets up to which slots and generations are committed. Stored
     * behind the commit, so that they never tell of memory that is not there. */
    _Atomic uint64_t slots_end, index_end;
    /* The number that the next value will have, of 63 bits. Random at the start, so that no two arenas of a group give out the same.
     * Stored before the word of whatever has a lower one: an adopter goes on from it. What it finds itself would not do: the
     * highest number may have been a removed entry's. */
    _Atomic uint64_t next_version;
};

enum { MGC_MAIN = 0, MGC_HOT = 1 }; /* the lists; MGC_HOT is a flag of blocks, too */

struct mgc_slot {
    _Atomic uint64_t word; /* as published in the index; 0: unused or only reserved */
    uint64_t tick;         /* mgc_ticks() of the last touch that was drained */
    uint32_t checksum : 31; /* of the block's header and key: adoption drops what does not match */
    uint32_t list : 1;      /* MGC_MAIN or MGC_HOT */
    uint32_t value_checksum; /* likewise, in an arena with checksums */
};

#define MGC_SLOT_FREE 0xffffffffu
#define MGC_SLOT_NONE 0xfffffffeu
#define MGC_SLOT_RANGE 0xfffffffdu

/* Flags of a block. */
#define MGC_AGED 2u   /* struct mgc_ages lies behind the key */
#define MGC_ABSENT 4u /* there is no such value: what lies here is the text of the NotFound */
#define MGC_COPY 8u   /* another host owns the key; behind the ages lies its version of the value, 8 bytes, 0: it gave none */
#define MGC_ALIGNED 16u /* the value begins at a multiple of MGC_LINE in its segment: its padding is more than to 8 */
#define MGC_COLD (MGC_AGED | MGC_ABSENT | MGC_COPY | MGC_ALIGNED) /* what a get has to look at */
#define MGC_FLAGS (MGC_HOT | MGC_COLD)

#define MGC_FOREVER UINT64_MAX

/* Of the instance's clock, in ns. The writer stores them relaxed at any time, for a touch, a refresh or a failed one; they lie
 * outside the slot's checksum. */
struct mgc_ages {
    _Atomic uint64_t fresh_until; /* then it is stale; MGC_FOREVER: never */
    _Atomic uint64_t dead_at;     /* then it is a miss */
    _Atomic uint64_t refresh_at;  /* a stale hit before that asks for no refresh: one is under way, or has just failed */
};

/* `size`, `slot`, the lengths and the bytes behind them (but for ages) do not change while the block is published. What
 * readers look at is the second half, next to the key: from three of the four places in a cache line where a block may
 * begin, that and a short key are in one line. */
struct mgc_block {
    uint32_t size;      /* granules, this header included */
    uint32_t prev_size; /* granules of the block in front of it, 0: the first. Writer's own, changes at any time */
    union {
        uint64_t version;   /* of the value: in the life of its group no other one has this number */
        uint64_t next_free; /* of a free block: the allocator's list, as offsets in granules ... */
    };
    uint32_t slot;
    uint32_t era; /* the header's, when it was published */
    union {
        struct {
            uint64_t value_length : 40;
            uint64_t key_length : 17;
            uint64_t flags : 7;
        };
        uint64_t prev_free; /* ... and back */
    };
    /* key_length bytes of key, padding to 8, what the flags say, padding if the value is aligned, value_length bytes of value */
};

#define MGC_KEY_OFFSET sizeof(struct mgc_block)
#define MGC_AGES_OFFSET(key_length) ((MGC_KEY_OFFSET + (size_t)(key_length) + 7) & ~(size_t)7)
#define MGC_COPY_OFFSET(key_length, flags) (MGC_AGES_OFFSET(key_length) + ((flags) & MGC_AGED ? sizeof(struct mgc_ages) : 0))
#define MGC_VALUE_OFFSET(key_length, flags) (MGC_COPY_OFFSET(key_length, flags) + ((flags) & MGC_COPY ? sizeof(uint64_t) : 0))
#define MGC_PADDING(flags) ((flags) & MGC_ALIGNED ? MGC_LINE - 8 : 0) /* at most, behind that offset */

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "words shared between processes must be lock-free");
_Static_assert(sizeof(_Atomic uint64_t) == 8 && sizeof(_Atomic uint32_t) == 4, "atomics are bare words");
/* The same in every layout, for ever. A coordinator that meets a segment of another release cannot take it over, but has to
 * retire it, or workers of that release would go on hitting it; and it has to tell how long that one's coordinator is dead. */
_Static_assert(offsetof(struct mgc_control_header, magic) == 0 && offsetof(struct mgc_arena_header, magic) == 0, "fixed");
_Static_assert(offsetof(struct mgc_control_header, version) == 8 && offsetof(struct mgc_arena_header, version) == 8, "fixed");
_Static_assert(offsetof(struct mgc_control_header, state) == 12 && offsetof(struct mgc_arena_header, state) == 12, "fixed");
_Static_assert(offsetof(struct mgc_control_header, boot_id) == 16 && offsetof(struct mgc_arena_header, boot_id) == 16, "fixed");
_Static_assert(offsetof(struct mgc_control_header, alive) == 48, "fixed; 0 in layouts below 4, which have no such field");
_Static_assert(offsetof(struct mgc_arena_header, index) == 128, "fixed");
_Static_assert(MGC_SEGMENT_RETIRED == 2 && MGC_CONTROL_MAGIC == 0x6c72746e6f63676dull && MGC_ARENA_MAGIC == 0x616e65726163676dull,
               "fixed");
_Static_assert(sizeof(struct mgc_control_header) <= MGC_PAGE, "the control header is a page");
_Static_assert(offsetof(struct mgc_control_header, clock_offset) == MGC_LINE, "apart from what changes at each tick");
_Static_assert(sizeof(struct mgc_group_row) == 352, "a group's row");
_Static_assert(sizeof(struct mgc_counters) == 2 * MGC_LINE, "counters: two cache lines a group, the first one for plain hits");
_Static_assert(offsetof(struct mgc_region, pin_limit) == MGC_LINE, "own cache line");
_Static_assert(offsetof(struct mgc_region, touch_head) == 2 * MGC_LINE, "own cache line");
_Static_assert(offsetof(struct mgc_region, pins) == MGC_PAGE, "pins begin a page");
_Static_assert(offsetof(struct mgc_region, touches) == 3 * MGC_PAGE, "touches begin a page");
_Static_assert(offsetof(struct mgc_region, counters) == 7 * MGC_PAGE, "counters begin a page");
_Static_assert(sizeof(struct mgc_region) == 15 * MGC_PAGE, "regions are committed one by one");
_Static_assert(MGC_REGIONS_OFFSET % MGC_MAP == 0 && MGC_REGION_STRIDE % MGC_MAP == 0, "regions are mapped one by one");
_Static_assert(MGC_CONTROL_SIZE % MGC_MAP == 0, "the control segment is mapped whole");
_Static_assert(offsetof(struct mgc_arena_header, index) == 2 * MGC_LINE, "get()'s words share no line with others");
_Static_assert(offsetof(struct mgc_arena_header, lists) == 3 * MGC_LINE, "stats share no line with get()'s words");
_Static_assert(sizeof(struct mgc_arena_header) <= MGC_PAGE, "the arena header is a page");
_Static_assert(sizeof(struct mgc_slot) == 24, "a slot");
_Static_assert(sizeof(struct mgc_ages) == 24 && MGC_MAX_KEY < 1u << 17, "what lies between key and value");
_Static_assert(sizeof(struct mgc_block) == 32 && sizeof(struct mgc_block) % MGC_GRANULE == 0, "a block's header");
_Static_assert(MGC_BUCKET_WORDS * sizeof(uint64_t) == MGC_LINE, "a bucket is one cache line");
_Static_assert((MGC_PINS & (MGC_PINS - 1)) == 0 && (MGC_TOUCHES & (MGC_TOUCHES - 1)) == 0, "rings wrap by masks");

#endif
