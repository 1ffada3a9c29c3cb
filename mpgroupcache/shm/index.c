#include "index.h"

#include <errno.h>

#include "space.h"

/* A generation is left when three of four of its words are used; its successor begins at three of eight. Two full buckets
 * before a quarter is used are not chance, but keys that somebody chose: growing would spend memory and not help. */
#define FULL(words) ((words) / 4 * 3)
#define SPARSE(words) ((words) / 4)

static uint64_t generation_bytes(uint64_t descriptor) { return mgc_index_buckets(descriptor) * sizeof(mgc_bucket); }

static _Atomic uint64_t *generation_words(const struct mgc_arena *arena, uint64_t descriptor) {
    return (_Atomic uint64_t *)(arena->base + mgc_index_offset(descriptor));
}

static _Atomic uint64_t *place_at(mgc_bucket *buckets[2], unsigned i) {
    return &(*buckets[i / MGC_BUCKET_WORDS])[i % MGC_BUCKET_WORDS];
}

/* An empty word of a hash's buckets, or NULL. Of the first bucket while that has more than NEARLY_FULL left, so that readers
 * need only one cache line; then of the emptier one, which keeps buckets so even that few generations are left because two
 * are full. There its home, or the next behind it: see mgc_near(). */
#define NEARLY_FULL 3
static _Atomic uint64_t *empty_place(const struct mgc_arena *arena, uint64_t descriptor, uint64_t hash) {
    mgc_bucket *buckets[2];
    unsigned empty[2], home = mgc_home(hash);
    mgc_buckets(arena->base, descriptor, hash, buckets);
    for (unsigned b = 0; b < 2; b++) {
        empty[b] = 0;
        for (unsigned i = 0; i < MGC_BUCKET_WORDS; i++)
            empty[b] += atomic_load_explicit(&(*buckets[b])[i], memory_order_relaxed) == 0;
    }
    mgc_bucket *bucket = buckets[empty[0] <= NEARLY_FULL && empty[1] > empty[0]];
    for (unsigned i = 0; i < MGC_BUCKET_WORDS; i++) {
        _Atomic uint64_t *place = &(*bucket)[(home + i) % MGC_BUCKET_WORDS];
        if (atomic_load_explicit(place, memory_order_relaxed) == 0)
            return place;
    }
    return NULL;
}

/* Commits the range of a generation that was never published, and zeroes what an attempt to fill it left there. */
static int prepare(struct mgc_arena *arena, uint64_t from, uint64_t to) {
    uint64_t committed = arena->index_committed;
    if (from < committed)
        memset(arena->base + from, 0, (to < committed ? to : committed) - from);
    if (to > committed) {
        int error = mgc_arena_commit(arena, committed, to - committed);
        if (error)
            return error;
        arena->index_committed = to;
        atomic_store_explicit(&arena->header->index_end, to, memory_order_relaxed);
    }
    return 0;
}

int mgc_index_init(struct mgc_arena *arena) {
    uint64_t descriptor = mgc_index_descriptor(arena->header->index_offset, MGC_INDEX_MIN_LOG2);
    arena->index_committed = arena->header->index_offset;
    int error = prepare(arena, arena->index_committed, arena->index_committed + generation_bytes(descriptor));
    if (error)
        return error;
    arena->descriptor = descriptor;
    arena->index_words = mgc_index_buckets(descriptor) * MGC_BUCKET_WORDS;
    atomic_store_explicit(&arena->header->index, descriptor, memory_order_release);
    return 0;
}

/* Growth. A reader may have been stopped anywhere in the old generation, so its memory stays what it is for good, and
 * its words are cleared: whoever then stands between its two loads of a word sees it gone. That is the first half of the
 * evict rule; no block is reused before the fence and the scan of the next mgc_retire(), which are the second. */
static int grow(struct mgc_arena *arena) {
    uint64_t old = arena->descriptor, offset = mgc_index_offset(old) + generation_bytes(old);
    unsigned log2_buckets = (unsigned)__builtin_ctzll(mgc_index_buckets(old)) + 1;
    for (;; log2_buckets++) {
        uint64_t grown = mgc_index_descriptor(offset, log2_buckets);
        uint64_t end = offset + generation_bytes(grown);
        if (end > arena->index_limit)
            return -ENOSPC;
        int error = prepare(arena, offset, end);
        if (error)
            return error;
        int crowded = 0;
        for (uint32_t slot = 0; slot < arena->slot_count && !crowded; slot++) {
            uint64_t word = mgc_slot_word(arena, slot);
            if (!word)
                continue;
            _Atomic uint64_t *place = empty_place(arena, grown, arena->links[slot].hash);
            if (place)
                atomic_store_explicit(place, word, memory_order_relaxed);
            else
                crowded = 1;
        }
        if (!crowded) {
            arena->descriptor = grown;
            break;
        }
        offset = end; /* never seen with an even hash; the words in this unpublished generation harm nobody */
    }
    arena->index_words = mgc_index_buckets(arena->descriptor) * MGC_BUCKET_WORDS;
    atomic_store_explicit(&arena->header->index, arena->descriptor, memory_order_release); /* get() acquires */
    _Atomic uint64_t *words = generation_words(arena, old);
    for (uint64_t i = 0; i < mgc_index_buckets(old) * MGC_BUCKET_WORDS; i++)
        atomic_store_explicit(&words[i], 0, memory_order_release);
    return 0;
}

_Atomic uint64_t *mgc_index_find(const struct mgc_arena *arena, uint64_t hash, const uint8_t *key, size_t key_length) {
    mgc_bucket *buckets[2];
    mgc_buckets(arena->base, arena->descriptor, hash, buckets);
    for (unsigned i = 0; i < 2 * MGC_BUCKET_WORDS; i++) {
        uint64_t word = atomic_load_explicit(place_at(buckets, i), memory_order_relaxed);
        if (!word || word >> MGC_TAG_SHIFT != mgc_tag(hash))
            continue;
        const struct mgc_block *block = mgc_heap_block(&arena->heap, mgc_word_offset(word));
        if (block->key_length == key_length && memcmp((const uint8_t *)block + MGC_KEY_OFFSET, key, key_length) == 0)
            return place_at(buckets, i);
    }
    return NULL;
}

_Atomic uint64_t *mgc_index_place(const struct mgc_arena *arena, uint32_t slot) {
    mgc_bucket *buckets[2];
    uint64_t word = mgc_slot_word(arena, slot);
    mgc_buckets(arena->base, arena->descriptor, arena->links[slot].hash, buckets);
    for (unsigned i = 0; i < 2 * MGC_BUCKET_WORDS; i++)
        if (atomic_load_explicit(place_at(buckets, i), memory_order_relaxed) == word)
            return place_at(buckets, i);
    return NULL;
}

_Atomic uint64_t *mgc_index_room(struct mgc_arena *arena, uint64_t hash, uint32_t *crowd) {
    if (arena->index_used >= FULL(arena->index_words))
        grow(arena); /* where it cannot, the words that are left still serve */
    _Atomic uint64_t *place = empty_place(arena, arena->descriptor, hash);
    if (!place && arena->index_used > SPARSE(arena->index_words) && grow(arena) == 0)
        place = empty_place(arena, arena->descriptor, hash);
    if (place)
        return place;
    mgc_bucket *buckets[2];
    mgc_buckets(arena->base, arena->descriptor, hash, buckets);
    *crowd = MGC_NO_SLOT;
    for (unsigned i = 0; i < 2 * MGC_BUCKET_WORDS; i++) {
        uint64_t word = atomic_load_explicit(place_at(buckets, i), memory_order_relaxed);
        uint32_t slot = mgc_heap_block(&arena->heap, mgc_word_offset(word))->slot;
        if (*crowd == MGC_NO_SLOT || arena->slots[slot].tick < arena->slots[*crowd].tick)
            *crowd = slot;
    }
    return NULL;
}
