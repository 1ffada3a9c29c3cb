#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "index.h"

struct checking {
    const struct mgc_arena *arena;
    void (*report)(void *, const char *);
    void *context;
    size_t found;
};

__attribute__((format(printf, 2, 3))) static void fault(struct checking *c, const char *format, ...) {
    char line[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    c->found++;
    if (c->report)
        c->report(c->context, line);
}

#define EXPECT_EQUAL(c, what, got, expected)                                                                           \
    do {                                                                                                               \
        uint64_t got_ = (got), expected_ = (expected);                                                                 \
        if (got_ != expected_)                                                                                         \
            fault(c, "%s: got %llu, expected %llu", what, (unsigned long long)got_, (unsigned long long)expected_);    \
    } while (0)

struct sums {
    uint64_t bytes[2], items[2], filling, limbo, used;
};

static void check_entry(struct checking *c, uint64_t offset, const struct mgc_block *block, struct sums *sums) {
    const struct mgc_arena *arena = c->arena;
    if (block->slot >= arena->slot_count || block->flags & ~MGC_FLAGS ||
        mgc_value_offset(block) + block->value_length > mgc_block_bytes(block)) {
        fault(c, "block at %llu: slot %u, flags %u, key %u B, value %llu B do not fit a block of %llu B",
              (unsigned long long)offset, block->slot, (unsigned)block->flags, (unsigned)block->key_length,
              (unsigned long long)block->value_length, (unsigned long long)mgc_block_bytes(block));
        return;
    }
    uint64_t word = mgc_slot_word(arena, block->slot), bytes = mgc_entry_bytes(block);
    uint64_t hash = mgc_hash(arena->header->seed, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length);
    EXPECT_EQUAL(c, "hash of an entry's key", arena->links[block->slot].hash, hash);
    if (word == 0) { /* being filled */
        sums->filling += bytes;
        return;
    }
    sums->bytes[mgc_list_of(block)] += bytes;
    sums->items[mgc_list_of(block)]++;
    EXPECT_EQUAL(c, "word in an entry's slot", word, mgc_word(hash, offset));
    EXPECT_EQUAL(c, "list in an entry's slot", arena->slots[block->slot].list, mgc_list_of(block));
    EXPECT_EQUAL(c, "checksum in an entry's slot", arena->slots[block->slot].checksum,
                 mgc_checksum(arena->header->seed, block));
    if (arena->header->checksums)
        EXPECT_EQUAL(c, "checksum of an entry's value", arena->slots[block->slot].value_checksum,
                     mgc_value_checksum(arena->header->seed, block));
    if (!mgc_index_place(arena, block->slot))
        fault(c, "block at %llu: its word is not in the index", (unsigned long long)offset);
}

static uint64_t check_blocks(struct checking *c, struct sums *sums) {
    const struct mgc_heap *heap = &c->arena->heap;
    uint64_t offset = heap->start, last = 0, free_blocks = 0;
    uint32_t prev_size = 0;
    int prev_free = 0;
    while (offset < heap->end) {
        const struct mgc_block *block = mgc_heap_block(heap, offset);
        if (block->size < 2 || mgc_block_bytes(block) > heap->end - offset) {
            fault(c, "block at %llu: size of %u granules is out of bounds", (unsigned long long)offset, block->size);
            return free_blocks;
        }
        EXPECT_EQUAL(c, "size of a block's predecessor", block->prev_size, prev_size);
        int is_free = block->slot == MGC_SLOT_FREE;
        free_blocks += (uint64_t)is_free;
        if (is_free && prev_free && (uint64_t)block->size + prev_size <= MGC_HEAP_MAX_GRANULES)
            fault(c, "block at %llu: free, and so is its predecessor", (unsigned long long)offset);
        if (!is_free)
            sums->used += mgc_block_bytes(block);
        if (block->slot == MGC_SLOT_NONE || block->slot == MGC_SLOT_RANGE)
            sums->limbo += mgc_block_bytes(block);
        else if (!is_free)
            check_entry(c, offset, block, sums);
        prev_free = is_free;
        prev_size = block->size;
        last = offset;
        offset += mgc_block_bytes(block);
    }
    EXPECT_EQUAL(c, "last block", heap->last, last);
    return free_blocks;
}

static void check_free_lists(struct checking *c, uint64_t free_blocks) {
    const struct mgc_heap *heap = &c->arena->heap;
    uint64_t listed = 0;
    for (unsigned first = 0; first < MGC_HEAP_FL; first++)
        for (unsigned second = 0; second < MGC_HEAP_SL; second++)
            for (uint64_t at = heap->free_lists[first][second]; at && listed <= free_blocks; listed++) {
                const struct mgc_block *block = mgc_heap_block(heap, at * MGC_GRANULE);
                if (block->slot != MGC_SLOT_FREE)
                    fault(c, "block at %llu: in a free list, but not free", (unsigned long long)at * MGC_GRANULE);
                at = block->next_free;
            }
    EXPECT_EQUAL(c, "blocks in free lists", listed, free_blocks);
}

static void check_lists(struct checking *c) {
    const struct mgc_arena *arena = c->arena;
    for (uint32_t list = 0; list < 2; list++) {
        uint64_t items = 0, expected = atomic_load_explicit(&arena->header->lists[list].items, memory_order_relaxed);
        uint32_t newer = MGC_NO_SLOT, slot = arena->lists[list].newest;
        for (; slot != MGC_NO_SLOT && items <= expected; slot = arena->links[slot].older, items++) {
            EXPECT_EQUAL(c, "newer neighbour in a list", arena->links[slot].newer, newer);
            if (mgc_slot_word(arena, slot) == 0)
                fault(c, "slot %u: in a list, but not published", slot);
            newer = slot;
        }
        EXPECT_EQUAL(c, "items in a list", items, expected);
        EXPECT_EQUAL(c, "oldest of a list", arena->lists[list].oldest, newer);
    }
}

static void check_index(struct checking *c) {
    const struct mgc_arena *arena = c->arena;
    uint64_t used = 0, current = mgc_index_offset(arena->descriptor);
    const _Atomic uint64_t *words = (const _Atomic uint64_t *)(arena->base + current);
    for (uint64_t i = 0; i < arena->index_words; i++)
        used += atomic_load_explicit(&words[i], memory_order_relaxed) != 0;
    EXPECT_EQUAL(c, "words in the index", used, arena->index_used);
    EXPECT_EQUAL(c, "items", used, atomic_load_explicit(&arena->header->lists[MGC_MAIN].items, memory_order_relaxed) +
                                       atomic_load_explicit(&arena->header->lists[MGC_HOT].items, memory_order_relaxed));
    uint64_t published = atomic_load_explicit(&arena->header->index, memory_order_relaxed);
    if (published) /* else retired */
        EXPECT_EQUAL(c, "index descriptor", published, arena->descriptor);
}

size_t mgc_arena_check(const struct mgc_arena *arena, void (*report)(void *context, const char *line), void *context) {
    struct checking c = {arena, report, context, 0};
    struct sums sums = {0};
    check_free_lists(&c, check_blocks(&c, &sums));
    check_lists(&c);
    check_index(&c);
    for (uint32_t list = 0; list < 2; list++) {
        EXPECT_EQUAL(&c, "bytes of a list", mgc_list_bytes(arena, list), sums.bytes[list]);
        EXPECT_EQUAL(&c, "entries of a list", atomic_load_explicit(&arena->header->lists[list].items, memory_order_relaxed),
                     sums.items[list]);
    }
    EXPECT_EQUAL(&c, "bytes being filled", arena->filling, sums.filling);
    EXPECT_EQUAL(&c, "bytes in use", arena->heap.used, sums.used);
    EXPECT_EQUAL(&c, "bytes in limbo", atomic_load_explicit(&arena->header->limbo_bytes, memory_order_relaxed), sums.limbo);
    if (mgc_list_bytes(arena, MGC_MAIN) + mgc_list_bytes(arena, MGC_HOT) > arena->budget)
        fault(&c, "more live bytes than the budget of %llu", (unsigned long long)arena->budget);
    return c.found;
}
