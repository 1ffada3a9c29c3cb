/* Taking over the arena of a coordinator that died, at any instruction.
 *
 * What it leaves is trusted as little as possible. An entry is what a word of the index in force names, if the word, the
 * block's header and key, and the slot agree; everything else (free lists, sizes between blocks, sums, the order of
 * slots) is made anew from these. In this order, which is the evict rule's, for all words at once:
 *
 * 1. Words of other generations are cleared: the dead one may have died while it grew the index.
 * 2. Words of the current one that name nothing sound are cleared; and those of entries that are of a former era, or dead and
 *    not kept any more.
 * 3. The fence, and the scan of all pins. A reader that pinned a block before either has its pin seen; one that pins later
 *    finds its word gone, or published, with its block in place. Words that the dead one had cleared without coming to
 *    its own scan are covered by this one.
 * 4. Between two entries lie blocks that were free, being filled, or in limbo, and nothing says which. From the lowest pin
 *    to the next entry all of it is kept as one block, for as long as any pin names a place in it: pins do not tell how
 *    far their blocks reach, and a pin that is about to be withdrawn may name the middle of a block that is held. The rest
 *    is free: a block that is held begins at its pin, and cannot reach beyond an entry.
 */
#include "adopt.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "lru.h"
#include "pins.h"
#include "reclaim.h"
#include "space.h"

struct entry {
    uint64_t offset, tick;
    _Atomic uint64_t *place;
    uint32_t slot;
};

struct entries {
    struct entry *items;
    size_t count;
};

static int by_offset(const void *a, const void *b) {
    uint64_t x = ((const struct entry *)a)->offset, y = ((const struct entry *)b)->offset;
    return (x > y) - (x < y);
}

static int by_tick(const void *a, const void *b) {
    uint64_t x = ((const struct entry *)a)->tick, y = ((const struct entry *)b)->tick;
    return (x > y) - (x < y);
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Looks at the header, and at what is committed: a page that is not there must not be touched. */
static int check_header(const uint8_t *base, uint64_t size, int fd, const struct mgc_arena_options *options,
                        struct mgc_plan *plan) {
    const struct mgc_arena_header *header = (const struct mgc_arena_header *)base;
    struct stat status;
    if (size < MGC_PAGE || fstat(fd, &status) != 0 || status.st_blocks == 0 || header->magic != MGC_ARENA_MAGIC ||
        header->version != MGC_LAYOUT_VERSION)
        return -EPROTO;
    if (memcmp(header->boot_id, options->boot_id, sizeof header->boot_id) != 0 || header->arena != options->arena ||
        header->checksums != options->checksums ||
        atomic_load_explicit(&header->state, memory_order_acquire) != MGC_SEGMENT_LIVE)
        return -ESTALE;
    *plan = mgc_arena_plan(header->budget);
    uint64_t slots_end = atomic_load_explicit(&header->slots_end, memory_order_relaxed);
    uint64_t index_end = atomic_load_explicit(&header->index_end, memory_order_relaxed);
    uint64_t entries_end = atomic_load_explicit(&header->entries_end, memory_order_relaxed);
    uint64_t descriptor = atomic_load_explicit(&header->index, memory_order_relaxed);
    uint64_t log2_buckets = descriptor & ((1u << MGC_INDEX_LOG2_BITS) - 1), index = mgc_index_offset(descriptor);
    if (plan->size > size || header->size != plan->size || header->slots_offset != plan->slots_offset ||
        header->index_offset != plan->index_offset || header->entries_offset != plan->entries_offset ||
        slots_end < plan->slots_offset || slots_end > plan->slots_offset + plan->slots * sizeof(struct mgc_slot) ||
        index_end < plan->index_offset || index_end > plan->entries_offset || index_end % MGC_PAGE ||
        entries_end < plan->entries_offset || entries_end > plan->size || entries_end % MGC_PAGE ||
        log2_buckets < MGC_INDEX_MIN_LOG2 || log2_buckets > 40 || index < plan->index_offset || index > index_end ||
        (sizeof(mgc_bucket) << log2_buckets) > index_end - index)
        return -EUCLEAN;
    uint64_t committed = MGC_PAGE + mgc_page_up(slots_end) - plan->slots_offset + index_end - plan->index_offset +
                         entries_end - plan->entries_offset;
    return (uint64_t)status.st_blocks * 512 < committed ? -EUCLEAN : 0;
}

/* Ages lie outside the checksum, since they change. What no writer would have stored is damaged, and nobody knows then when
 * the entry is dead. */
static int sound_ages(const struct mgc_ages *ages, uint64_t now) {
    uint64_t times[2] = {atomic_load_explicit(&ages->fresh_until, memory_order_relaxed),
                         atomic_load_explicit(&ages->dead_at, memory_order_relaxed)};
    for (int i = 0; i < 2; i++)
        if (times[i] != MGC_FOREVER && times[i] > now && times[i] - now > MGC_LONGEST)
            return 0;
    return 1;
}

/* The dead one may have died between two stores of a touch; and a refresh must not be put off for ever. */
static void mend_ages(struct mgc_ages *ages, uint64_t now) {
    uint64_t dead = atomic_load_explicit(&ages->dead_at, memory_order_relaxed);
    if (atomic_load_explicit(&ages->fresh_until, memory_order_relaxed) > dead)
        atomic_store_explicit(&ages->fresh_until, dead, memory_order_relaxed);
    if (mgc_time_left(now, atomic_load_explicit(&ages->refresh_at, memory_order_relaxed)) > MGC_LONGEST_PAUSE)
        atomic_store_explicit(&ages->refresh_at, 0, memory_order_relaxed);
}

enum { DAMAGED = 0, SOUND = 1, GONE = 2 };

/* Whether a word names an entry that is what it was when it was published. Fills in all of it but the place. GONE: it does,
 * but nobody is to find it: of a former era, or dead and not kept. */
static int judge(const struct mgc_arena *arena, uint64_t entries_end, const _Atomic uint64_t *place, uint64_t word,
                 uint64_t now, struct entry *entry) {
    uint64_t offset = mgc_word_offset(word), seed = arena->header->seed;
    if (offset < arena->heap.start || offset > entries_end - sizeof(struct mgc_block))
        return DAMAGED;
    const struct mgc_block *block = mgc_heap_block(&arena->heap, offset);
    if (block->size < sizeof *block / MGC_GRANULE || mgc_block_bytes(block) > entries_end - offset ||
        block->key_length > MGC_MAX_KEY || block->flags & ~MGC_FLAGS || mgc_value_offset(block) > mgc_block_bytes(block) ||
        block->value_length > mgc_block_bytes(block) - mgc_value_offset(block) ||
        block->slot >= arena->slots_committed)
        return DAMAGED;
    const struct mgc_slot *slot = &arena->slots[block->slot];
    uint64_t hash = mgc_hash(seed, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length);
    mgc_bucket *buckets[2];
    mgc_buckets(arena->base, arena->descriptor, hash, buckets);
    int at_home = 0;
    for (int b = 0; b < 2; b++)
        at_home |= place >= *buckets[b] && place < *buckets[b] + MGC_BUCKET_WORDS;
    if (!at_home || word != mgc_word(hash, offset) || atomic_load_explicit(&slot->word, memory_order_relaxed) != word ||
        slot->list != mgc_list_of(block) || slot->checksum != mgc_checksum(seed, block))
        return DAMAGED;
    if (!mgc_is_of_this_era(arena, block))
        return GONE;
    if (block->flags & MGC_AGED) {
        if (!sound_ages(mgc_ages_of(block), now))
            return DAMAGED;
        if (mgc_entry_kept_until(arena, block) <= now)
            return GONE;
    }
    if (arena->header->checksums && slot->value_checksum != mgc_value_checksum(seed, block))
        return DAMAGED;
    *entry = (struct entry){.offset = offset, .tick = slot->tick, .slot = block->slot};
    return SOUND;
}

static void drop(const struct entry *entry, struct mgc_adopted *adopted) {
    atomic_store_explicit(entry->place, 0, memory_order_release);
    adopted->dropped++;
}

/* Steps 1 and 2. The entries are in the order of their offsets then. */
static int find_entries(struct mgc_arena *arena, struct entries *entries, struct mgc_adopted *adopted) {
    uint64_t end = atomic_load_explicit(&arena->header->entries_end, memory_order_relaxed), now = mgc_ticks();
    uint64_t clock = mgc_arena_clock(arena);
    _Atomic uint64_t *first = (_Atomic uint64_t *)(arena->base + arena->header->index_offset);
    _Atomic uint64_t *current = (_Atomic uint64_t *)(arena->base + mgc_index_offset(arena->descriptor));
    _Atomic uint64_t *last = (_Atomic uint64_t *)(arena->base + arena->index_committed);
    size_t words = 0;
    for (_Atomic uint64_t *place = first; place < last; place++) {
        if (place >= current && place < current + arena->index_words)
            words += atomic_load_explicit(place, memory_order_relaxed) != 0;
        else if (atomic_load_explicit(place, memory_order_relaxed) != 0)
            atomic_store_explicit(place, 0, memory_order_release);
    }
    entries->items = malloc((words + 1) * sizeof *entries->items);
    if (!entries->items)
        return -ENOMEM;
    for (_Atomic uint64_t *place = current; place < current + arena->index_words; place++) {
        uint64_t word = atomic_load_explicit(place, memory_order_relaxed);
        struct entry *entry = &entries->items[entries->count];
        if (!word)
            continue;
        int judged = judge(arena, end, place, word, clock, entry);
        if (judged == SOUND) {
            entry->place = place;
            if (entry->tick > now) /* no touch would ever be newer */
                entry->tick = now;
            entries->count++;
        } else if (judged == GONE) {
            atomic_store_explicit(place, 0, memory_order_release);
        } else {
            drop(&(struct entry){.place = place}, adopted);
        }
    }
    qsort(entries->items, entries->count, sizeof *entries->items, by_offset);
    /* Blocks do not overlap, and between two lies nothing or room for a block. Of two in each other's way the first stays;
     * a slot knows one word, so that it has one entry. */
    size_t kept = 0;
    uint64_t at = arena->heap.start;
    for (size_t i = 0; i < entries->count; i++) {
        const struct entry *entry = &entries->items[i];
        uint64_t gap = entry->offset - at;
        if (entry->offset < at || (gap && gap < sizeof(struct mgc_block))) {
            drop(entry, adopted);
            continue;
        }
        at = entry->offset + mgc_block_bytes(mgc_heap_block(&arena->heap, entry->offset));
        entries->items[kept++] = *entry;
    }
    if (kept && end != at && end - at < sizeof(struct mgc_block))
        drop(&entries->items[--kept], adopted);
    entries->count = adopted->entries = kept;
    return 0;
}

/* The places that this arena's pins name, in order. */
static int find_pins(const struct mgc_arena *arena, struct mgc_offsets *pins) {
    const struct mgc_control *control = arena->control;
    for (size_t i = 0; control->pin_count && i < control->pin_room; i++)
        if (control->pins[i] >> MGC_TAG_SHIFT == arena->header->arena + 1ull &&
            mgc_offsets_add(pins, mgc_word_offset(control->pins[i])) != 0)
            return -ENOMEM;
    if (pins->count)
        qsort(pins->items, pins->count, sizeof *pins->items, by_value);
    return 0;
}

/* Step 4, for what lies between `heap.end` and `to`; `pin` goes on from the last one that was looked at. */
static int lay_gap(struct mgc_arena *arena, uint64_t to, const struct mgc_offsets *pins, size_t *pin) {
    struct mgc_heap *heap = &arena->heap;
    while (*pin < pins->count && pins->items[*pin] < heap->end)
        (*pin)++;
    if (*pin == pins->count || pins->items[*pin] >= to) {
        mgc_heap_lay(heap, to - heap->end, MGC_SLOT_FREE);
        return 0;
    }
    uint64_t from = pins->items[*pin];
    if (to - from < sizeof(struct mgc_block)) /* no honest reader's: there is no room for a block */
        from = to - sizeof(struct mgc_block);
    if (from - heap->end < sizeof(struct mgc_block))
        from = heap->end;
    if ((to - from) / MGC_GRANULE > MGC_HEAP_MAX_GRANULES) /* it will be a free block */
        return -EUCLEAN;
    mgc_heap_lay(heap, from - heap->end, MGC_SLOT_FREE);
    mgc_heap_lay(heap, to - from, MGC_SLOT_RANGE);
    return mgc_offsets_add(&arena->limbo, from) != 0 ? -ENOMEM : 0;
}

static int build_heap(struct mgc_arena *arena, const struct entries *entries) {
    struct mgc_offsets pins = {0};
    uint64_t end = atomic_load_explicit(&arena->header->entries_end, memory_order_relaxed);
    size_t pin = 0;
    int error = find_pins(arena, &pins);
    for (size_t i = 0; !error && i <= entries->count; i++) {
        error = lay_gap(arena, i < entries->count ? entries->items[i].offset : end, &pins, &pin);
        if (!error && i < entries->count) {
            const struct mgc_block *block = mgc_heap_block(&arena->heap, entries->items[i].offset);
            mgc_heap_lay(&arena->heap, mgc_block_bytes(block), block->slot);
        }
    }
    free(pins.items);
    return error;
}

/* Numbers go on from the header's, which was stored before any word of an entry with a lower one. What cannot be that is
 * damaged: a random number is no other's. */
static void go_on_with_versions(struct mgc_arena *arena, const struct entries *entries) {
    struct mgc_arena_header *header = arena->header;
    uint64_t next = atomic_load_explicit(&header->next_version, memory_order_relaxed);
    int usable = next > 0 && next < 1ull << 63;
    for (size_t i = 0; i < entries->count; i++)
        usable &= mgc_heap_block(&arena->heap, entries->items[i].offset)->version < next;
    arena->next_version = usable ? next : mgc_random_start();
    atomic_store_explicit(&header->next_version, arena->next_version, memory_order_relaxed);
}

/* Slots, lists, wheel and sums. The entries are in the order of their last use then. */
static int build_lists(struct mgc_arena *arena, struct entries *entries) {
    struct mgc_list_stats sums[2] = {0};
    uint64_t now = mgc_arena_clock(arena);
    for (size_t i = 0; i < entries->count; i++)
        if (entries->items[i].slot >= arena->slot_count)
            arena->slot_count = entries->items[i].slot + 1;
    arena->links_room = arena->slot_count;
    arena->links = malloc(((size_t)arena->links_room + 1) * sizeof *arena->links);
    if (!arena->links)
        return -ENOMEM;
    for (uint32_t slot = 0; slot < arena->slot_count; slot++)
        arena->links[slot].newer = 0; /* no entry's, as far as one knows */
    for (size_t i = 0; i < entries->count; i++)
        arena->links[entries->items[i].slot].newer = 1;
    for (uint32_t slot = arena->slot_count; slot-- > 0;)
        if (!arena->links[slot].newer)
            mgc_slot_give(arena, slot);
    qsort(entries->items, entries->count, sizeof *entries->items, by_tick);
    for (size_t i = 0; i < entries->count; i++) {
        const struct entry *entry = &entries->items[i];
        const struct mgc_block *block = mgc_heap_block(&arena->heap, entry->offset);
        struct mgc_link *link = &arena->links[entry->slot];
        link->hash = mgc_hash(arena->header->seed, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length);
        link->rate = mgc_rate_begin(arena->control->now);
        mgc_lru_push(arena, entry->slot, entry->tick);
        if (block->flags & MGC_AGED)
            mend_ages(mgc_ages_of(block), now);
        mgc_reclaim_later(arena, entry->slot);
        mgc_add(&sums[mgc_list_of(block)].bytes, mgc_entry_bytes(block));
        mgc_add(&sums[mgc_list_of(block)].items, 1);
    }
    arena->index_used = entries->count;
    for (int list = 0; list < 2; list++) {
        struct mgc_list_stats *stats = &arena->header->lists[list];
        atomic_store_explicit(&stats->bytes, sums[list].bytes, memory_order_relaxed);
        atomic_store_explicit(&stats->items, sums[list].items, memory_order_relaxed);
    }
    return 0;
}

int mgc_arena_adopt(struct mgc_arena *arena, uint8_t *base, uint64_t size, int fd, struct mgc_control *control,
                    const struct mgc_arena_options *options, struct mgc_adopted *adopted) {
    struct mgc_plan plan;
    struct entries entries = {0};
    *adopted = (struct mgc_adopted){0};
    int error = check_header(base, size, fd, options, &plan);
    if (error)
        return error;
    struct mgc_arena_header *header = (struct mgc_arena_header *)base;
    mgc_arena_begin(arena, base, fd, control, &plan, header->budget, options->max_entry);
    arena->reserve = options->reserve;
    arena->descriptor = atomic_load_explicit(&header->index, memory_order_relaxed);
    arena->index_words = mgc_index_buckets(arena->descriptor) * MGC_BUCKET_WORDS;
    arena->index_committed = atomic_load_explicit(&header->index_end, memory_order_relaxed);
    uint64_t slots_end = atomic_load_explicit(&header->slots_end, memory_order_relaxed);
    arena->slots_committed = (uint32_t)((slots_end - plan.slots_offset) / sizeof(struct mgc_slot));
    uint64_t committed = MGC_PAGE + mgc_page_up(slots_end) - plan.slots_offset + arena->index_committed -
                         plan.index_offset + atomic_load_explicit(&header->entries_end, memory_order_relaxed) -
                         plan.entries_offset;
    atomic_store_explicit(&header->committed, committed, memory_order_relaxed);
    error = find_entries(arena, &entries, adopted);
    if (!error) {
        atomic_thread_fence(memory_order_seq_cst); /* with the fence of get() */
        mgc_control_scan(control);
        error = build_heap(arena, &entries);
    }
    if (!error)
        error = build_lists(arena, &entries);
    if (!error)
        go_on_with_versions(arena, &entries);
    free(entries.items);
    if (error) {
        mgc_arena_close(arena);
        return error;
    }
    control->arenas[header->arena] = arena;
    atomic_store_explicit(&header->limbo_bytes, 0, memory_order_relaxed);
    mgc_retire(arena); /* counts what is in limbo */
    return 0;
}
