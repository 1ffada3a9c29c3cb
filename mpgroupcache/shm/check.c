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
    uint64_t bytes[3], items[3], filling, limbo, used; /* of the lists: MGC_MAIN, MGC_HOT, MGC_DEAD */
};

static uint32_t list_in_force(const struct mgc_arena *arena, const struct mgc_block *block) {
    return mgc_is_of_this_era(arena, block) ? mgc_list_of(block) : MGC_DEAD;
}

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
    sums->bytes[list_in_force(arena, block)] += bytes;
    sums->items[list_in_force(arena, block)]++;
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

static uint64_t items_of(const struct mgc_arena *arena, uint32_t list) {
    return list == MGC_DEAD ? arena->dead.items
                            : atomic_load_explicit(&arena->header->lists[list].items, memory_order_relaxed);
}

static uint64_t bytes_of(const struct mgc_arena *arena, uint32_t list) {
    return list == MGC_DEAD ? arena->dead.bytes : mgc_list_bytes(arena, list);
}

static void check_lists(struct checking *c) {
    const struct mgc_arena *arena = c->arena;
    for (uint32_t list = 0; list < 3; list++) {
        uint64_t items = 0, expected = items_of(arena, list);
        uint32_t newer = MGC_NO_SLOT, slot = arena->lists[list].newest;
        for (; slot != MGC_NO_SLOT && items <= expected; slot = arena->links[slot].older, items++) {
            EXPECT_EQUAL(c, "newer neighbour in a list", arena->links[slot].newer, newer);
            if (mgc_slot_word(arena, slot) == 0)
                fault(c, "slot %u: in a list, but not published", slot);
            else
                EXPECT_EQUAL(c, "list of an entry in a list", list_in_force(arena, mgc_slot_block(arena, slot)), list);
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
    EXPECT_EQUAL(c, "items", used, items_of(arena, MGC_MAIN) + items_of(arena, MGC_HOT) + items_of(arena, MGC_DEAD));
    uint64_t published = atomic_load_explicit(&arena->header->index, memory_order_relaxed);
    if (published) /* else retired */
        EXPECT_EQUAL(c, "index descriptor", published, arena->descriptor);
}

/* Each entry that is to be reclaimed at a time is in the wheel, once, in its place; and nothing else is. */
static void check_wheel(struct checking *c) {
    const struct mgc_arena *arena = c->arena;
    const struct mgc_wheel *wheel = arena->wheel;
    uint64_t in_places = 0, in_wheel = 0;
    for (uint32_t place = 0; wheel && place < MGC_WHEEL_LEVELS * MGC_WHEEL_PLACES; place++) {
        uint32_t prev = MGC_WHEEL_FIRST + place, level = place / MGC_WHEEL_PLACES, digit = place % MGC_WHEEL_PLACES;
        EXPECT_EQUAL(c, "whether a place is occupied", wheel->occupied[level] >> digit & 1, wheel->first[place] != MGC_WHEEL_NONE);
        for (uint32_t slot = wheel->first[place]; slot != MGC_WHEEL_NONE && in_places <= arena->slot_count; in_places++) {
            EXPECT_EQUAL(c, "neighbour in a place of the wheel", wheel->links[slot].prev, prev);
            if (mgc_slot_word(arena, slot) == 0 || !mgc_is_of_this_era(arena, mgc_slot_block(arena, slot))) {
                fault(c, "slot %u: in the wheel, but not of an entry of this era", slot);
            } else {
                uint64_t tick = (mgc_entry_kept_until(arena, mgc_slot_block(arena, slot)) >> MGC_WHEEL_TICK_LOG2) + 1;
                uint64_t differs = (tick ^ wheel->time) >> level * MGC_WHEEL_DIGIT;
                if (differs >= MGC_WHEEL_PLACES || (tick >> level * MGC_WHEEL_DIGIT & (MGC_WHEEL_PLACES - 1)) != digit)
                    fault(c, "slot %u: in place %u of level %u, but due at tick %llu, and it is %llu", slot, digit, level,
                          (unsigned long long)tick, (unsigned long long)wheel->time);
            }
            prev = slot;
            slot = wheel->links[slot].next;
        }
    }
    for (uint32_t slot = 0; slot < arena->slot_count; slot++) {
        const struct mgc_block *block = mgc_slot_word(arena, slot) ? mgc_slot_block(arena, slot) : NULL;
        int noted = wheel && slot < wheel->room && wheel->links[slot].prev != MGC_WHEEL_NONE;
        if (block && !mgc_is_of_this_era(arena, block))
            continue; /* forgotten with all others */
        int due = block && block->flags & MGC_AGED && mgc_entry_kept_until(arena, block) != MGC_FOREVER;
        in_wheel += (uint64_t)noted;
        if (noted != due)
            fault(c, "slot %u: %s in the wheel", slot, noted ? "it is" : "it is not");
    }
    EXPECT_EQUAL(c, "slots in the wheel", in_places, in_wheel);
}

size_t mgc_arena_check(const struct mgc_arena *arena, void (*report)(void *context, const char *line), void *context) {
    struct checking c = {arena, report, context, 0};
    struct sums sums = {0};
    check_free_lists(&c, check_blocks(&c, &sums));
    check_lists(&c);
    check_index(&c);
    check_wheel(&c);
    for (uint32_t list = 0; list < 3; list++) {
        EXPECT_EQUAL(&c, "bytes of a list", bytes_of(arena, list), sums.bytes[list]);
        EXPECT_EQUAL(&c, "entries of a list", items_of(arena, list), sums.items[list]);
    }
    EXPECT_EQUAL(&c, "version that comes next", arena->next_version,
                 atomic_load_explicit(&arena->header->next_version, memory_order_relaxed));
    EXPECT_EQUAL(&c, "bytes being filled", arena->filling, sums.filling);
    EXPECT_EQUAL(&c, "bytes in use", arena->heap.used, sums.used);
    EXPECT_EQUAL(&c, "bytes in limbo", atomic_load_explicit(&arena->header->limbo_bytes, memory_order_relaxed), sums.limbo);
    if (bytes_of(arena, MGC_MAIN) + bytes_of(arena, MGC_HOT) + bytes_of(arena, MGC_DEAD) > arena->budget)
        fault(&c, "more bytes of entries than the budget of %llu", (unsigned long long)arena->budget);
    return c.found;
}
