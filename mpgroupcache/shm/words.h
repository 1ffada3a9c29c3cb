/* Small functions on the layout's words: hash, ticks, packing. No state. */
#ifndef MPGROUPCACHE_WORDS_H
#define MPGROUPCACHE_WORDS_H

#include <string.h>
#include <time.h>
#if defined(__x86_64__) || defined(__i386__)
#include <x86intrin.h>
#endif

#include "layout.h"

#define MGC_LIKELY(x) __builtin_expect(!!(x), 1)
#define MGC_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Has a cache line come, to be written soon: for its own, if another processor has a copy. Only a hint. */
static inline void mgc_prefetch_to_write(const void *line) {
#if defined(__x86_64__)
    /* What compilers make of __builtin_prefetch() asks for a copy, unless told that every processor knows this one. All
     * of 64 bits do, or take it for a nop. */
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

/* A time whose unit is known, on a clock that does not go back. */
static inline uint64_t mgc_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A cheap time that all processors of the host share. It orders touches: where it is wrong, LRU is a little off; and says
 * whether a clock that was read is still good. */
static inline uint64_t mgc_ticks(void) {
#if defined(__x86_64__) || defined(__i386__)
    return __rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks << 8; /* it counts at some 25 MHz to 1 GHz, and touches drop the low 8 bits */
#else
    return mgc_nanoseconds() << 2;
#endif
}

#define MGC_TICKS_MS (1u << 20) /* no more than a millisecond: nowhere less than 2^30 of them are a second */

static inline uint64_t mgc_read64(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

static inline uint64_t mgc_read32(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return word;
}

/* Both halves of the 128-bit product, folded: every bit of the input reaches every bit of the result. */
static inline uint64_t mgc_fold(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Hash of a key. The seed is random and secret to the host's workers, so that keys cannot be chosen to collide: both
 * factors of each product hold a secret (a known constant in one is a factor that a key can make 0, and the product then
 * forgets the other), and not the same one (or the two halves of a key could be exchanged). */
static inline uint64_t mgc_hash(uint64_t seed, const uint8_t *key, size_t length) {
    const uint64_t k0 = 0x9e3779b97f4a7c15ull, k1 = 0xd1b54a32d192ed03ull; /* odd, half their bits set */
    const uint64_t secret = (seed << 29 | seed >> 35) ^ k1;
    uint64_t state = seed ^ k0, a, b;
    const uint8_t *p = key;
    size_t left = length;
    for (; left > 16; left -= 16, p += 16)
        state = mgc_fold(mgc_read64(p) ^ state, mgc_read64(p + 8) ^ secret);
    if (left >= 8) { /* two words that overlap in the middle */
        a = mgc_read64(p);
        b = mgc_read64(p + left - 8);
    } else if (left >= 4) {
        a = mgc_read32(p);
        b = mgc_read32(p + left - 4);
    } else { /* 0 to 3 bytes: first, middle, last */
        a = left ? (uint64_t)p[0] << 16 | (uint64_t)p[left >> 1] << 8 | p[left - 1] : 0;
        b = 0;
    }
    state = mgc_fold(a ^ state, b ^ secret);
    return mgc_fold(state ^ seed, length ^ k0);
}

static inline uint64_t mgc_tag(uint64_t hash) { return hash >> MGC_TAG_SHIFT; }

static inline uint64_t mgc_word(uint64_t hash, uint64_t block_offset) {
    return mgc_tag(hash) << MGC_TAG_SHIFT | block_offset / MGC_GRANULE;
}

static inline uint64_t mgc_word_offset(uint64_t word) { return (word & MGC_BLOCK_MASK) * MGC_GRANULE; }

/* Never 0, and unlike for every block of every arena. */
static inline uint64_t mgc_pin_word(uint32_t arena, uint64_t word) {
    return (uint64_t)(arena + 1) << MGC_TAG_SHIFT | (word & MGC_BLOCK_MASK);
}

static inline uint64_t mgc_index_descriptor(uint64_t offset, unsigned log2_buckets) {
    return offset / MGC_PAGE << MGC_INDEX_LOG2_BITS | log2_buckets;
}

static inline uint64_t mgc_index_offset(uint64_t descriptor) { return (descriptor >> MGC_INDEX_LOG2_BITS) * MGC_PAGE; }

static inline uint64_t mgc_index_buckets(uint64_t descriptor) {
    return 1ull << (descriptor & ((1u << MGC_INDEX_LOG2_BITS) - 1));
}

typedef _Atomic uint64_t mgc_bucket[MGC_BUCKET_WORDS];

static inline mgc_bucket *mgc_bucket_at(const uint8_t *base, uint64_t descriptor, uint64_t number) {
    mgc_bucket *index = (mgc_bucket *)(uintptr_t)(base + mgc_index_offset(descriptor));
    return &index[number & (mgc_index_buckets(descriptor) - 1)];
}

static inline mgc_bucket *mgc_first_bucket(const uint8_t *base, uint64_t descriptor, uint64_t hash) {
    return mgc_bucket_at(base, descriptor, hash);
}

/* The two buckets of a hash. The second comes from other bits, so that keys that share one seldom share both. */
static inline void mgc_buckets(const uint8_t *base, uint64_t descriptor, uint64_t hash, mgc_bucket *buckets[2]) {
    buckets[0] = mgc_first_bucket(base, descriptor, hash);
    buckets[1] = mgc_bucket_at(base, descriptor, hash * 0x9e3779b97f4a7c15ull >> 24);
}

/* The word of a bucket where a hash's word is put if that is empty; else it is in the next empty one behind. From bits that
 * neither choose the bucket nor are in the tag. */
static inline unsigned mgc_home(uint64_t hash) { return hash >> (MGC_TAG_SHIFT - 3) & (MGC_BUCKET_WORDS - 1); }

static inline uint32_t mgc_list_of(const struct mgc_block *block) { return block->flags & MGC_HOT; }

static inline struct mgc_ages *mgc_ages_of(const struct mgc_block *block) {
    return (struct mgc_ages *)(uintptr_t)((const uint8_t *)block + MGC_AGES_OFFSET(block->key_length));
}

static inline uint64_t *mgc_owners_version(const struct mgc_block *block) {
    return (uint64_t *)(uintptr_t)((const uint8_t *)block + MGC_COPY_OFFSET(block->key_length, block->flags));
}

/* Where the value lies, counted from the block's beginning. */
static inline size_t mgc_value_offset(const struct mgc_block *block) {
    size_t offset = MGC_VALUE_OFFSET(block->key_length, block->flags);
    if (!(block->flags & MGC_ALIGNED))
        return offset;
    return offset + (-((uintptr_t)block + offset) & (MGC_LINE - 1)); /* segments are mapped at multiples of pages */
}

/* The bytes of a block that readers compare and adoption verifies: the header and the key, and of a copy its owner's version. */
static inline uint32_t mgc_checksum(uint64_t seed, const struct mgc_block *block) {
    uint64_t words[3] = {(uint64_t)block->size << 32 | block->slot, block->prev_free, block->version};
    uint64_t hash = mgc_hash(seed, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length);
    if (block->flags & MGC_COPY)
        words[2] ^= *mgc_owners_version(block) << 32 | *mgc_owners_version(block) >> 32;
    hash = mgc_fold(hash ^ words[0], ~words[1] ^ 0x9e3779b97f4a7c15ull);
    return (uint32_t)mgc_fold(hash ^ block->era, words[2] ^ 0xd1b54a32d192ed03ull) >> 1;
}

static inline uint32_t mgc_value_checksum(uint64_t seed, const struct mgc_block *block) {
    return (uint32_t)mgc_hash(seed, (const uint8_t *)block + mgc_value_offset(block), block->value_length);
}

#endif
