#include "pins.h"

#include <stdlib.h>

#include "lru.h"

/* Where a pin word is in the set, or the 0 where it would be. The set is at most half full. */
static uint64_t *pin_place(const struct mgc_control *control, uint64_t word) {
    uint64_t i = word * 0x9e3779b97f4a7c15ull >> 32;
    for (;; i++) {
        uint64_t *place = &control->pins[i & (control->pin_room - 1)];
        if (*place == word || *place == 0)
            return place;
    }
}

static void add_pin(struct mgc_control *control, uint64_t word) {
    if (2 * control->pin_count >= control->pin_room) {
        size_t old_room = control->pin_room;
        uint64_t *old = control->pins;
        control->pin_room = old_room ? 2 * old_room : 64;
        control->pins = calloc(control->pin_room, sizeof *control->pins);
        if (!control->pins)
            abort(); /* an incomplete scan would free what somebody reads */
        for (size_t i = 0; i < old_room; i++)
            if (old[i])
                *pin_place(control, old[i]) = old[i];
        free(old);
    }
    uint64_t *place = pin_place(control, word);
    control->pin_count += *place == 0;
    *place = word;
}

void mgc_control_scan(struct mgc_control *control) {
    if (control->pin_count) {
        memset(control->pins, 0, control->pin_room * sizeof *control->pins);
        control->pin_count = 0;
    }
    uint32_t count = control->regions;
    for (uint32_t i = 0; i < count; i++) {
        struct mgc_region *region = mgc_region_at(control, i); /* ascending: see mgc_region_copy_pins() */
        uint32_t limit = atomic_load_explicit(&region->pin_limit, memory_order_relaxed);
        for (uint32_t pin = 0; pin < limit && pin < MGC_PINS; pin++) {
            /* Pairs with unpin()'s release: a reader's reads come before the reuse that a 0 here allows. */
            uint64_t word = atomic_load_explicit(&region->pins[pin], memory_order_acquire);
            if (word)
                add_pin(control, word);
        }
    }
}

int mgc_pinned_within(const struct mgc_control *control, uint32_t arena, uint64_t from, uint64_t to) {
    uint64_t first = mgc_pin_word(arena, from / MGC_GRANULE), last = mgc_pin_word(arena, (to - 1) / MGC_GRANULE);
    for (size_t i = 0; control->pin_count && i < control->pin_room; i++)
        if (control->pins[i] >= first && control->pins[i] <= last)
            return 1;
    return 0;
}

int mgc_pinned(const struct mgc_control *control, uint32_t arena, uint64_t offset) {
    return control->pin_count && *pin_place(control, mgc_pin_word(arena, offset / MGC_GRANULE)) != 0;
}

int mgc_offsets_add(struct mgc_offsets *offsets, uint64_t offset) {
    if (offsets->count == offsets->room) {
        size_t room = offsets->room ? 2 * offsets->room : 64;
        uint64_t *items = realloc(offsets->items, room * sizeof *items);
        if (!items)
            return -1;
        offsets->items = items;
        offsets->room = room;
    }
    offsets->items[offsets->count++] = offset;
    return 0;
}

void mgc_unpublish(struct mgc_arena *arena, uint32_t slot, _Atomic uint64_t *place, uint64_t word) {
    struct mgc_block *block = mgc_slot_block(arena, slot);
    uint64_t offset = mgc_word_offset(mgc_slot_word(arena, slot));
    atomic_store_explicit(place, word, memory_order_release); /* see retire() for the rest of the evict rule */
    arena->index_used -= word == 0;
    if (mgc_is_of_this_era(arena, block)) {
        struct mgc_list_stats *stats = &arena->header->lists[mgc_list_of(block)];
        mgc_add(&stats->bytes, -mgc_entry_bytes(block));
        mgc_add(&stats->items, -1ull);
        mgc_lru_unlink(arena, slot, mgc_list_of(block));
        mgc_wheel_remove(arena->wheel, slot);
    } else {
        arena->dead.bytes -= mgc_entry_bytes(block);
        arena->dead.items--;
        mgc_lru_unlink(arena, slot, MGC_DEAD);
        mgc_wheel_forget(arena->wheel, slot);
    }
    mgc_slot_give(arena, slot);
    block->slot = MGC_SLOT_NONE; /* readers do not look at it */
    if (mgc_offsets_add(&arena->retiring, offset) != 0)
        abort(); /* a block that is in no list could never be freed */
}

/* Whether a view may lie in a block that is in no index. */
static int held(const struct mgc_arena *arena, uint64_t offset) {
    const struct mgc_block *block = mgc_heap_block(&arena->heap, offset);
    uint32_t id = arena->header->arena;
    return block->slot == MGC_SLOT_RANGE ? mgc_pinned_within(arena->control, id, offset, offset + mgc_block_bytes(block))
                                         : mgc_pinned(arena->control, id, offset);
}

void mgc_retire(struct mgc_arena *arena) {
    if (!arena->retiring.count && !arena->limbo.count)
        return;
    /* With the fence of get(): a reader whose fence comes first has its pin seen below; one whose fence comes later sees
     * its word gone. */
    atomic_thread_fence(memory_order_seq_cst);
    mgc_control_scan(arena->control);
    struct mgc_offsets *sources[2] = {&arena->limbo, &arena->retiring};
    uint64_t limbo_bytes = 0;
    for (int s = 0; s < 2; s++) {
        size_t kept = 0;
        for (size_t i = 0; i < sources[s]->count; i++) {
            uint64_t offset = sources[s]->items[i];
            if (!held(arena, offset)) {
                mgc_heap_free(&arena->heap, offset);
                continue;
            }
            limbo_bytes += mgc_block_bytes(mgc_heap_block(&arena->heap, offset));
            if (s == 0)
                arena->limbo.items[kept++] = offset;
            else if (mgc_offsets_add(&arena->limbo, offset) != 0)
                abort();
        }
        if (s == 0)
            arena->limbo.count = kept;
    }
    arena->retiring.count = 0;
    atomic_store_explicit(&arena->header->limbo_bytes, limbo_bytes, memory_order_relaxed);
}
