#include "arena.h"

#include <errno.h>
#include <stdlib.h>

#include "control.h"
#include "evict.h"
#include "index.h"
#include "lru.h"
#include "pins.h"
#include "space.h"

void mgc_arena_begin(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control,
                     const struct mgc_plan *plan, uint64_t budget, uint64_t max_entry) {
    memset(arena, 0, sizeof *arena);
    arena->base = base;
    arena->fd = fd;
    arena->header = (struct mgc_arena_header *)base;
    arena->control = control;
    arena->budget = budget;
    /* What is larger could only be refused after making room for it. */
    arena->max_entry = max_entry < budget ? max_entry : budget;
    if (arena->max_entry > MGC_HEAP_MAX_BYTES - MGC_PAGE)
        arena->max_entry = MGC_HEAP_MAX_BYTES - MGC_PAGE;
    arena->commit_limit = UINT64_MAX;
    arena->entries_limit = plan->size;
    arena->slots = (struct mgc_slot *)(base + plan->slots_offset);
    arena->slots_limit = (uint32_t)plan->slots;
    arena->index_limit = plan->entries_offset;
    mgc_heap_init(&arena->heap, base, plan->entries_offset);
    mgc_lru_init(arena);
}

int mgc_arena_format(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control,
                     const struct mgc_arena_options *options) {
    struct mgc_plan plan = mgc_arena_plan(options->budget);
    if (plan.size > MGC_MAX_ARENA)
        return -EFBIG;
    int error = mgc_commit(fd, 0, MGC_PAGE);
    if (error)
        return error;
    mgc_arena_begin(arena, base, fd, control, &plan, options->budget, options->max_entry);
    struct mgc_arena_header *header = arena->header;
    header->magic = MGC_ARENA_MAGIC;
    header->version = MGC_LAYOUT_VERSION;
    memcpy(header->boot_id, options->boot_id, sizeof header->boot_id);
    header->seed = options->seed;
    header->size = plan.size;
    header->budget = options->budget;
    header->slots_offset = plan.slots_offset;
    header->index_offset = plan.index_offset;
    header->entries_offset = plan.entries_offset;
    header->arena = options->arena;
    header->incarnation = options->incarnation;
    header->checksums = options->checksums;
    atomic_store_explicit(&header->next_version, mgc_random_start(), memory_order_relaxed);
    atomic_store_explicit(&header->committed, MGC_PAGE, memory_order_relaxed);
    atomic_store_explicit(&header->entries_end, plan.entries_offset, memory_order_relaxed);
    atomic_store_explicit(&header->slots_end, plan.slots_offset, memory_order_relaxed);
    error = mgc_index_init(arena);
    if (error)
        return error;
    arena->reserve = options->reserve;
    control->arenas[options->arena] = arena;
    atomic_store_explicit(&header->state, MGC_SEGMENT_LIVE, memory_order_release);
    return 0;
}

void mgc_arena_retire(struct mgc_arena *arena) {
    atomic_store_explicit(&arena->header->state, MGC_SEGMENT_RETIRED, memory_order_release);
    atomic_store_explicit(&arena->header->index, 0, memory_order_release); /* get() then says MGC_DETACHED */
}

void mgc_arena_close(struct mgc_arena *arena) {
    if (arena->control && arena->control->arenas[arena->header->arena] == arena)
        arena->control->arenas[arena->header->arena] = NULL;
    free(arena->links);
    free(arena->retiring.items);
    free(arena->limbo.items);
    memset(arena, 0, sizeof *arena);
}

/* A number for a value. It is spent in memory before anybody is told of it. */
static uint64_t mgc_next_version(struct mgc_arena *arena) {
    uint64_t version = atomic_load_explicit(&arena->header->next_version, memory_order_relaxed);
    atomic_store_explicit(&arena->header->next_version, version + 1, memory_order_relaxed);
    return version;
}

static uint32_t slot_at(const struct mgc_arena *arena, _Atomic uint64_t *place) {
    uint64_t word = atomic_load_explicit(place, memory_order_relaxed);
    return mgc_heap_block(&arena->heap, mgc_word_offset(word))->slot;
}

static uint32_t take_slot(struct mgc_arena *arena, uint32_t keep) {
    uint32_t slot = mgc_slot_take(arena);
    if (slot == MGC_NO_SLOT && mgc_evict_one(arena, keep) == 0)
        slot = mgc_slot_take(arena);
    return slot;
}

int mgc_arena_reserve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t value_length, uint32_t list,
                      struct mgc_reservation *reservation) {
    /* Refused up front: making room first and failing then would have emptied the cache for nothing, as Go's does. */
    if (key_length > MGC_MAX_KEY || key_length > arena->max_entry || value_length > arena->max_entry - key_length)
        return MGC_TOO_LARGE;
    uint64_t hash = mgc_hash(arena->header->seed, key, key_length), bytes = key_length + value_length, replaced = 0;
    _Atomic uint64_t *place = mgc_index_find(arena, hash, key, key_length);
    uint32_t keep = MGC_NO_SLOT;
    if (place) {
        keep = slot_at(arena, place);
        replaced = mgc_entry_bytes(mgc_slot_block(arena, keep));
    }
    if (mgc_evict_for_budget(arena, bytes > replaced ? bytes - replaced : 0, keep) != 0)
        return MGC_NO_ROOM;
    uint64_t offset = mgc_evict_for_block(arena, MGC_VALUE_OFFSET(key_length, list) + value_length, keep);
    if (!offset)
        return MGC_NO_ROOM;
    uint32_t slot = take_slot(arena, keep);
    if (slot == MGC_NO_SLOT) {
        mgc_heap_free(&arena->heap, offset);
        return MGC_NO_ROOM;
    }
    struct mgc_block *block = mgc_heap_block(&arena->heap, offset);
    block->slot = slot;
    block->era = atomic_load_explicit(&arena->header->era, memory_order_relaxed);
    block->key_length = key_length & 0x1ffff;
    block->flags = list & MGC_FLAGS;
    block->value_length = value_length & ((1ull << 40) - 1);
    block->version = mgc_next_version(arena);
    memcpy((uint8_t *)block + MGC_KEY_OFFSET, key, key_length);
    atomic_store_explicit(&arena->slots[slot].word, 0, memory_order_relaxed);
    arena->slots[slot].list = list & 1;
    arena->links[slot].hash = hash;
    arena->filling += bytes;
    *reservation = (struct mgc_reservation){
        .offset = offset, .slot = slot, .value = (uint8_t *)block + mgc_value_offset(block), .length = value_length};
    return 0;
}

void mgc_arena_abandon(struct mgc_arena *arena, const struct mgc_reservation *reservation) {
    arena->filling -= mgc_entry_bytes(mgc_heap_block(&arena->heap, reservation->offset));
    mgc_slot_give(arena, reservation->slot);
    mgc_heap_free(&arena->heap, reservation->offset); /* it had no word: nobody can have pinned it */
}

void mgc_arena_publish(struct mgc_arena *arena, const struct mgc_reservation *reservation) {
    struct mgc_block *block = mgc_heap_block(&arena->heap, reservation->offset);
    struct mgc_slot *slot = &arena->slots[reservation->slot];
    uint64_t hash = arena->links[reservation->slot].hash, word = mgc_word(hash, reservation->offset);
    _Atomic uint64_t *place =
        mgc_index_find(arena, hash, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length);
    uint32_t replaced = place ? slot_at(arena, place) : MGC_NO_SLOT;
    /* A rate is the key's, and outlives a value of it; the get that loads a key begins it, and is not counted. */
    struct mgc_rate rate = place ? arena->links[replaced].rate : mgc_rate_begin(arena->control->now);
    if (!place) {
        place = mgc_index_room(arena, hash, &replaced);
        if (!place) { /* both buckets are full for good */
            place = mgc_index_place(arena, replaced);
            mgc_add(&arena->header->lists[arena->slots[replaced].list].evictions, 1);
        }
    }
    /* The slot before the word: whoever adopts the segment finds for each published word a slot that knows it. */
    slot->checksum = mgc_checksum(arena->header->seed, block);
    slot->value_checksum = arena->header->checksums ? mgc_value_checksum(arena->header->seed, block) : 0;
    atomic_store_explicit(&slot->word, word, memory_order_relaxed);
    arena->links[reservation->slot].rate = rate;
    if (replaced != MGC_NO_SLOT) {
        mgc_unpublish(arena, replaced, place, word);
    } else {
        /* Pairs with get()'s acquire: who sees the word sees the block filled. */
        atomic_store_explicit(place, word, memory_order_release);
        arena->index_used++;
    }
    mgc_lru_push(arena, reservation->slot, mgc_ticks());
    mgc_add(&arena->header->lists[mgc_list_of(block)].bytes, mgc_entry_bytes(block));
    mgc_add(&arena->header->lists[mgc_list_of(block)].items, 1);
    arena->filling -= mgc_entry_bytes(block);
    mgc_retire(arena);
    /* Two values of one key, filled side by side, each counted on replacing the same entry. */
    mgc_evict_for_budget(arena, 0, reservation->slot);
}

/* The slot of a key's entry, or MGC_NO_SLOT. */
static uint32_t slot_of(const struct mgc_arena *arena, const uint8_t *key, size_t key_length) {
    uint64_t hash = mgc_hash(arena->header->seed, key, key_length);
    _Atomic uint64_t *place = mgc_index_find(arena, hash, key, key_length);
    return place ? slot_at(arena, place) : MGC_NO_SLOT;
}

/* A get of the coordinator's own. */
static void touch_entry(struct mgc_arena *arena, uint32_t slot, const uint8_t **value, uint64_t *value_length) {
    const struct mgc_block *block = mgc_slot_block(arena, slot);
    mgc_lru_touch(arena, slot);
    *value = (const uint8_t *)block + mgc_value_offset(block);
    *value_length = block->value_length;
}

int mgc_arena_find(struct mgc_arena *arena, const uint8_t *key, size_t key_length, const uint8_t **value,
                   uint64_t *value_length) {
    uint32_t slot = slot_of(arena, key, key_length);
    if (slot == MGC_NO_SLOT)
        return 0;
    touch_entry(arena, slot, value, value_length);
    return 1;
}

int mgc_arena_serve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, const uint8_t **value,
                    uint64_t *value_length, double *minute_qps) {
    uint32_t slot = slot_of(arena, key, key_length), now = arena->control->now;
    if (slot == MGC_NO_SLOT)
        return 0;
    touch_entry(arena, slot, value, value_length);
    mgc_rate_count(&arena->links[slot].rate, 1, now);
    *minute_qps = mgc_rate_round(mgc_rate_qps(&arena->links[slot].rate, now));
    uint32_t group = arena->header->arena;
    struct mgc_counters *totals = (struct mgc_counters *)(arena->control->base + MGC_TOTALS_OFFSET) + group;
    mgc_add(arena->slots[slot].list == MGC_HOT ? &totals->hot_hits : &totals->main_hits, 1);
    mgc_control_count_request(arena->control, group);
    return 1;
}

double mgc_arena_minute_qps(const struct mgc_arena *arena, const uint8_t *key, size_t key_length) {
    uint32_t slot = slot_of(arena, key, key_length);
    return slot == MGC_NO_SLOT ? 0 : mgc_rate_qps(&arena->links[slot].rate, arena->control->now);
}

int mgc_arena_remove(struct mgc_arena *arena, const uint8_t *key, size_t key_length) {
    uint64_t hash = mgc_hash(arena->header->seed, key, key_length);
    _Atomic uint64_t *place = mgc_index_find(arena, hash, key, key_length);
    if (!place)
        return 0;
    mgc_unpublish(arena, slot_at(arena, place), place, 0);
    mgc_retire(arena);
    return 1;
}

void mgc_arena_sweep(struct mgc_arena *arena) { mgc_retire(arena); }
