/* What a worker does with the segments: find a region of its own, and get().
 *
 * Guarantees: a hit's bytes do not change and are not reused until its pin is released; a key's whole bytes were
 * compared; no memory beyond what is committed is touched; what was dead before a get began, by mgc_now_at(), is no hit.
 * This code assumes that calls on one region do not overlap (the binding holds the GIL), and that nobody but the
 * coordinator writes to an arena.
 */
#ifndef MPGROUPCACHE_READER_H
#define MPGROUPCACHE_READER_H

#include "words.h"

#define MGC_NO_REGION (-10003) /* beside negative errnos: none is free */

struct mgc_map { /* an attached arena */
    const uint8_t *base;
    const struct mgc_control_header *control; /* of its instance */
    uint64_t seed;
    uint64_t entries_offset;
    uint32_t arena;
};

struct mgc_hit {
    const uint8_t *value;
    uint64_t length;
};

/* What a get finds. From MGC_HIT on the entry is pinned: MGC_STALE_HIT is one whose refresh is due, and the value
 * of an MGC_ABSENT_HIT is the text of its NotFound. MGC_CHANGED, a word that has gone, no caller sees. */
enum { MGC_MISS, MGC_CHANGED, MGC_DETACHED, MGC_HIT, MGC_STALE_HIT, MGC_ABSENT_HIT };

static inline const struct mgc_arena_header *mgc_header(const struct mgc_map *map) {
    return (const struct mgc_arena_header *)map->base;
}

static inline void mgc_unpin(struct mgc_region *region, uint32_t pin) {
    /* Pairs with the acquire in the coordinator's scan: reads of the block happen before it is reused. */
    atomic_store_explicit(&region->pins[pin], 0, memory_order_release);
}

static inline void mgc_count(_Atomic uint64_t *counter, uint64_t n) {
    /* One writer: no read-modify-write is needed, only that a reader never sees half a word. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

#define MGC_TOUCHES_AHEAD 8u /* two cache lines: their next write is some hits away, longer than a line takes to come */

static inline void mgc_note_touch(struct mgc_region *region, uint64_t word, uint32_t arena, uint64_t ticks) {
    uint64_t head = atomic_load_explicit(&region->touch_head, memory_order_relaxed);
    struct mgc_touch *touch = &region->touches[head & (MGC_TOUCHES - 1)];
    /* The coordinator may be reading the touch that this one overwrites. The fence of this get() lies between the last
     * store to touch_head and these, so whoever sees one of these sees at least that head and drops what it read. */
    atomic_store_explicit(&touch->word, word, memory_order_relaxed);
    atomic_store_explicit(&touch->time, (ticks & ~0xffull) | arena, memory_order_relaxed);
    atomic_store_explicit(&region->touch_head, head + 1, memory_order_release);
    /* The coordinator has read that line since it was last written. Asked for at its first touch, its return would be
     * waited for by the fence of the next get(). */
    mgc_prefetch_to_write(&region->touches[(head + MGC_TOUCHES_AHEAD) & (MGC_TOUCHES - 1)]);
}

static inline int mgc_same_key(const uint8_t *a, const uint8_t *b, size_t length) {
    if (MGC_UNLIKELY(length < 8 || length > 32)) /* for others a call is as good */
        return memcmp(a, b, length) == 0;
    uint64_t differ = mgc_read64(a + length - 8) ^ mgc_read64(b + length - 8);
    for (size_t i = 0; i + 8 < length; i += 8)
        differ |= mgc_read64(a + i) ^ mgc_read64(b + i);
    return differ == 0;
}

static inline void mgc_count_hit(const struct mgc_map *map, struct mgc_region *region, const struct mgc_block *block,
                                 uint64_t word, uint64_t ticks) {
    struct mgc_counters *counters = &region->counters[map->arena];
    mgc_note_touch(region, word, map->arena, ticks);
    mgc_count(block->flags & MGC_HOT ? &counters->hot_hits : &counters->main_hits, 1);
}

/* CLOCK_BOOTTIME in ns, for less than that takes, and never ahead of it. It is behind by up to a step of the kernel's coarse
 * clock, 1 to 10 ms; and for 100 ms after the host was suspended, by as long as that was. */
uint64_t mgc_host_now(void);

/* The same on the instance's clock: see layout.h. */
static inline uint64_t mgc_now(const struct mgc_control_header *control) {
    return mgc_host_now() + atomic_load_explicit(&control->clock_offset, memory_order_relaxed);
}

/* The clock as a get of this process read it last, and its ticks then. */
struct mgc_reading {
    _Atomic uint64_t at, now;
};

extern struct mgc_reading mgc_last_reading;

uint64_t mgc_read_clock(uint64_t ticks);

/* mgc_now() of a get, less than a millisecond older than its `ticks`: to read a clock costs a tenth of a hit. */
static inline uint64_t mgc_now_at(const struct mgc_control_header *control, uint64_t ticks) {
    /* On a processor whose ticks are behind this is a large number, too. */
    uint64_t passed = ticks - atomic_load_explicit(&mgc_last_reading.at, memory_order_acquire);
    uint64_t now = MGC_LIKELY(passed < MGC_TICKS_MS) ? atomic_load_explicit(&mgc_last_reading.now, memory_order_relaxed)
                                                     : mgc_read_clock(ticks);
    return now + atomic_load_explicit(&control->clock_offset, memory_order_relaxed);
}

/* What a get says of its key's entry, which is pinned, where that may be dead or has one of MGC_COLD's flags: as
 * mgc_pin_entry(). `grace`: 0 for a get. Else what is dead is found, too, until so many ns after it was fresh, and nothing is
 * counted: it is for a get that was counted when it missed. `hit`: filled in, but for the value's padding. */
int mgc_cold_hit(const struct mgc_map *map, struct mgc_region *region, uint32_t pin, const struct mgc_block *block,
                 uint64_t word, uint64_t ticks, uint64_t grace, struct mgc_hit *hit);

/* Of an aged entry. */
static inline int mgc_is_fresh(const struct mgc_block *block, uint64_t now) {
    return now < atomic_load_explicit(&mgc_ages_of(block)->fresh_until, memory_order_relaxed);
}

/* Stores a pin. It holds behind a fence, if the word is then still there: mgc_pinned_entry(). */
static inline void mgc_pin(const struct mgc_map *map, struct mgc_region *region, uint32_t pin, uint64_t word) {
    if (MGC_UNLIKELY(atomic_load_explicit(&region->pin_limit, memory_order_relaxed) <= pin))
        atomic_store_explicit(&region->pin_limit, pin + 1, memory_order_relaxed);
    atomic_store_explicit(&region->pins[pin], mgc_pin_word(map->arena, word), memory_order_release);
}

/* The rest of mgc_pin_entry(), behind the fence. */
static inline int mgc_pinned_entry(const struct mgc_map *map, struct mgc_region *region, uint32_t pin,
                                   const _Atomic uint64_t *place, uint64_t word, const uint8_t *key, size_t key_length,
                                   uint64_t ticks, uint64_t grace, struct mgc_hit *hit) {
    uint64_t offset = mgc_word_offset(word);
    const struct mgc_block *block = (const struct mgc_block *)(map->base + offset);
    if (MGC_UNLIKELY(atomic_load_explicit(place, memory_order_acquire) != word)) {
        mgc_unpin(region, pin);
        return MGC_CHANGED;
    }
    /* From here on the block is pinned. An honest coordinator never fails the two bounds; a damaged word must not become
     * a read outside of committed memory, which is a SIGBUS. */
    uint64_t end = atomic_load_explicit(&mgc_header(map)->entries_end, memory_order_relaxed);
    if (MGC_LIKELY(offset >= map->entries_offset && offset + sizeof *block <= end)) {
        uint64_t value = offset + MGC_VALUE_OFFSET(block->key_length, block->flags);
        if (MGC_LIKELY(block->key_length == key_length && value <= end && block->value_length <= end - value &&
                       mgc_same_key((const uint8_t *)block + MGC_KEY_OFFSET, key, key_length))) {
            hit->value = map->base + value;
            hit->length = block->value_length;
            /* Behind the fence: what was cleared before this get began is of another era than the one that is seen here. */
            uint64_t other = (block->era ^ atomic_load_explicit(&mgc_header(map)->era, memory_order_relaxed)) | grace;
            unsigned cold = block->flags & MGC_COLD;
            /* Ages are read behind the pin: before it they could be those of another entry, or no ages at all. */
            if (MGC_UNLIKELY(other | cold) &&
                !(other == 0 && cold == MGC_AGED && mgc_is_fresh(block, mgc_now_at(map->control, ticks))))
                return mgc_cold_hit(map, region, pin, block, word, ticks, grace, hit);
            mgc_count_hit(map, region, block, word, ticks);
            return MGC_HIT;
        }
    }
    mgc_unpin(region, pin);
    return MGC_MISS;
}

/* Has the lines come that mgc_pinned_entry() reads first: the block's header and the end of its key, half of the time in
 * another line. Only hints: nothing is read before the pin holds. */
static inline void mgc_prefetch_entry(const struct mgc_map *map, uint64_t word, size_t key_length) {
    const struct mgc_block *block = (const struct mgc_block *)(map->base + mgc_word_offset(word));
    __builtin_prefetch(&block->slot);
    __builtin_prefetch((const uint8_t *)block + MGC_KEY_OFFSET + key_length);
}

/* Pins what `word`, found at `place`, names. From MGC_HIT on that is the key's entry; else the pin is free again: MGC_MISS is
 * another key with the same tag, or a dead entry, MGC_CHANGED a word that has gone. */
static inline int mgc_pin_entry(const struct mgc_map *map, struct mgc_region *region, uint32_t pin,
                                const _Atomic uint64_t *place, uint64_t word, const uint8_t *key, size_t key_length,
                                uint64_t ticks, uint64_t grace, struct mgc_hit *hit) {
    mgc_prefetch_entry(map, word, key_length); /* while the fence below waits */
    /* The interleaving that the fence and the second load prevent: this thread loads the word; the coordinator
     * unpublishes it, scans, sees no pin, reuses the block; this thread stores its pin and reads another entry. */
    mgc_pin(map, region, pin, word);
    atomic_thread_fence(memory_order_seq_cst); /* with the fence of retire() */
    return mgc_pinned_entry(map, region, pin, place, word, key, key_length, ticks, grace, hit);
}

/* The place of the bucket where the word of this hash is if it is at its home or not far behind. Relaxed: it only says which
 * word is to be loaded. Without branches, since the place differs from key to key, and a wrong guess costs more than this. */
static inline _Atomic uint64_t *mgc_near(mgc_bucket bucket, uint64_t hash) {
    unsigned home = mgc_home(hash), near = home;
#pragma GCC unroll 4
    for (unsigned i = 1; i < MGC_BUCKET_WORDS / 2; i++) {
        uint64_t word = atomic_load_explicit(&bucket[(home + i) % MGC_BUCKET_WORDS], memory_order_relaxed);
        near = word >> MGC_TAG_SHIFT == mgc_tag(hash) ? home + i : near;
    }
    return &bucket[near % MGC_BUCKET_WORDS];
}

/* The rest of get(): looks through both buckets of the key. `grace`: see mgc_cold_hit(). */
int mgc_search(const struct mgc_map *map, struct mgc_region *region, uint32_t pin, const uint8_t *key, size_t key_length,
               uint64_t hash, uint64_t ticks, uint64_t grace, struct mgc_hit *hit);

/* Pins the entry of `key` under `pin`, a free pin of this region. What is below MGC_HIT leaves the pin free.
 *
 * Most words are near their homes; this is for them, and inlined, so it is short. */
__attribute__((always_inline)) static inline int mgc_get(const struct mgc_map *map, struct mgc_region *region, uint32_t pin,
                                                         const uint8_t *key, size_t key_length, struct mgc_hit *hit) {
    uint64_t ticks = mgc_ticks(); /* slow to answer: asked for here, the hash needs not wait for it */
    uint64_t hash = mgc_hash(map->seed, key, key_length);
    /* Pairs with the release in grow(): the generation's words are seen filled. */
    uint64_t descriptor = atomic_load_explicit(&mgc_header(map)->index, memory_order_acquire);
    if (MGC_UNLIKELY(descriptor == 0))
        return MGC_DETACHED;
    _Atomic uint64_t *place = mgc_near(*mgc_first_bucket(map->base, descriptor, hash), hash);
    uint64_t word = atomic_load_explicit(place, memory_order_acquire); /* pairs with the release of publish() */
    if (MGC_LIKELY(word >> MGC_TAG_SHIFT == mgc_tag(hash) && word != 0)) {
        int found = mgc_pin_entry(map, region, pin, place, word, key, key_length, ticks, 0, hit);
        if (MGC_LIKELY(found >= MGC_HIT))
            return found;
    }
    return mgc_search(map, region, pin, key, key_length, hash, ticks, 0, hit);
}

/* The same for an entry that is kept until `grace` ns after it was fresh, though it may be dead. */
int mgc_get_kept(const struct mgc_map *map, struct mgc_region *region, uint32_t pin, const uint8_t *key, size_t key_length,
                 uint64_t grace, struct mgc_hit *hit);

/* One of the keys that are looked up together. `pin`: a free one, and of no other look. `found`: what mgc_get() says. */
struct mgc_look {
    const uint8_t *key;
    size_t key_length;
    uint32_t pin;
    int found;
    struct mgc_hit hit;
    uint64_t hash, word;
    _Atomic uint64_t *place;
};

/* mgc_get() of many keys: one fence orders all their pins, and their cache lines come side by side. */
void mgc_get_many(const struct mgc_map *map, struct mgc_region *region, struct mgc_look *looks, size_t count);

/* The block that a pin of an arena mapped at `base` names. */
static inline const struct mgc_block *mgc_pinned_block(const struct mgc_region *region, uint32_t pin, const uint8_t *base) {
    uint64_t word = atomic_load_explicit(&region->pins[pin], memory_order_relaxed);
    return (const struct mgc_block *)(base + mgc_word_offset(word));
}

/* The version of a value: of a copy its owner's, where that gave one. */
static inline uint64_t mgc_version(const struct mgc_block *block) {
    uint64_t owners = block->flags & MGC_COPY ? *mgc_owners_version(block) : 0;
    return owners ? owners : block->version;
}

static inline uint64_t mgc_fresh_until(const struct mgc_block *block) {
    return block->flags & MGC_AGED ? atomic_load_explicit(&mgc_ages_of(block)->fresh_until, memory_order_relaxed)
                                   : MGC_FOREVER;
}

static inline uint64_t mgc_dead_at(const struct mgc_block *block) {
    return block->flags & MGC_AGED ? atomic_load_explicit(&mgc_ages_of(block)->dead_at, memory_order_relaxed)
                                   : MGC_FOREVER;
}

/* Looks at an arena of `size` bytes that was mapped at `base`, of the instance whose control segment begins at `control`. 0,
 * or a negative errno: EPROTO for another layout, ESTALE for a segment that is not LIVE. */
int mgc_map_attach(struct mgc_map *map, const void *control, const void *base, uint64_t size);

/* Claims a free region above `above` (-1: any) of the control segment behind `fd`, and maps it. The region's lock belongs
 * to an open file description of its own, opened here through /proc; the mapping keeps it when its descriptor is closed,
 * here too: a descriptor that lived longer could be copied by another thread's fork, and that child would keep the lock.
 * Returns the region's number, MGC_NO_REGION, or a negative errno. */
int mgc_region_claim(int fd, const struct mgc_control_header *control, int above, struct mgc_region **region);

/* Copies the pins of `from` into `to`, the region of a child that is about to be forked. */
void mgc_region_copy_pins(struct mgc_region *to, const struct mgc_region *from);

/* Puts the name of the calling process, a child for which its parent claimed it, on a region. */
void mgc_region_adopt(struct mgc_region *region);

/* Says that the process is about to end: its region, which stays locked until then, is no reason to keep the instance. */
void mgc_region_leave(struct mgc_region *region);

/* Whether a process has a region of the control segment behind `fd`: 1, 0, or a negative errno. `leaving`: those that are
 * about to end count, too; else the segment is of this layout. The answer holds while the caller has the gate's lock and
 * the writer's: a process that claims a region asks a coordinator first, and one that is about to end says so, and comes to
 * the gate. */
int mgc_regions_held(int fd, int leaving);

/* Unmaps a region. The lock goes with the mapping, and the coordinator zeroes the pins when it sees that. */
void mgc_region_unmap(struct mgc_region *region);

/* The counts of a group over all regions and the totals. */
void mgc_sum_counters(const void *control, uint32_t group, uint64_t sums[MGC_COUNTERS]);

/* The change count of a group. */
uint64_t mgc_changes(const void *control, uint32_t group);

/* The hits and loads of a group as they were when it was cleared last. */
void mgc_cleared(const void *control, uint32_t group, uint64_t *hits, uint64_t *loads);

/* How many gets of a group came from peers. */
uint64_t mgc_server_requests(const void *control, uint32_t group);

/* Locks on one byte of the control segment; they belong to the open file description. 0, or a negative errno: EAGAIN
 * when another description has it. */
int mgc_lock(int fd, uint32_t byte);
int mgc_unlock(int fd, uint32_t byte);

#endif
