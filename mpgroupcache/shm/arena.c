#include "arena.h"

#include <errno.h>
#include <stdlib.h>

#include "control.h"
#include "evict.h"
#include "index.h"
#include "lru.h"
#include "pins.h"
#include "reclaim.h"
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
    arena->next_version = mgc_random_start();
    atomic_store_explicit(&header->next_version, arena->next_version, memory_order_relaxed);
    atomic_store_explicit(&header->era, (uint32_t)mgc_random_start(), memory_order_relaxed);
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
    mgc_wheel_free(arena->wheel);
    free(arena->retiring.items);
    free(arena->limbo.items);
    memset(arena, 0, sizeof *arena);
}

uint64_t mgc_new_version(struct mgc_arena *arena) {
    uint64_t version = arena->next_version++;
    /* Before anybody is told of it, and before any word that names it: whoever adopts the arena goes on behind it. */
    atomic_store_explicit(&arena->header->next_version, arena->next_version, memory_order_relaxed);
    return version;
}

static uint32_t slot_at(const struct mgc_arena *arena, _Atomic uint64_t *place) {
    uint64_t word = atomic_load_explicit(place, memory_order_relaxed);
    return mgc_heap_block(&arena->heap, mgc_word_offset(word))->slot;
}

static void store_ages(struct mgc_ages *ages, uint64_t now, int64_t fresh, int64_t dead) {
    uint64_t fresh_until = mgc_time_at(now, fresh), dead_at = mgc_time_at(now, dead);
    atomic_store_explicit(&ages->fresh_until, fresh_until < dead_at ? fresh_until : dead_at, memory_order_relaxed);
    atomic_store_explicit(&ages->dead_at, dead_at, memory_order_relaxed);
    atomic_store_explicit(&ages->refresh_at, 0, memory_order_relaxed);
}

static uint32_t take_slot(struct mgc_arena *arena, uint32_t keep) {
    uint32_t slot = mgc_slot_take(arena);
    if (slot == MGC_NO_SLOT && mgc_evict_one(arena, keep) == 0)
        slot = mgc_slot_take(arena);
    return slot;
}

/* Whether an entry is of no use to anybody: of a former era, or dead and not kept. */
static int is_gone(const struct mgc_arena *arena, const struct mgc_block *block) {
    return !mgc_is_of_this_era(arena, block) ||
           (block->flags & MGC_AGED && mgc_entry_kept_until(arena, block) <= mgc_arena_clock(arena));
}

/* A block and a slot for an entry of `bytes` in a block of `block_bytes`, in place of the one in slot `keep`. */
static int make_room(struct mgc_arena *arena, uint64_t bytes, uint64_t block_bytes, uint32_t keep, uint64_t *offset,
                     uint32_t *slot) {
    uint64_t replaced = keep == MGC_NO_SLOT ? 0 : mgc_entry_bytes(mgc_slot_block(arena, keep));
    if (mgc_evict_for_budget(arena, bytes > replaced ? bytes - replaced : 0, keep) != 0)
        return MGC_NO_ROOM;
    *offset = mgc_evict_for_block(arena, block_bytes, keep);
    if (!*offset)
        return MGC_NO_ROOM;
    *slot = take_slot(arena, keep);
    if (*slot != MGC_NO_SLOT)
        return 0;
    mgc_heap_free(&arena->heap, *offset);
    return MGC_NO_ROOM;
}

int mgc_arena_reserve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t value_length,
                      const struct mgc_traits *traits, struct mgc_reservation *reservation) {
    /* Refused up front: making room first and failing then would have emptied the cache for nothing, as Go's does. */
    if (key_length > MGC_MAX_KEY || key_length > arena->max_entry || value_length > arena->max_entry - key_length)
        return MGC_TOO_LARGE;
    uint64_t hash = mgc_hash(arena->header->seed, key, key_length), bytes = key_length + value_length, offset;
    _Atomic uint64_t *place = mgc_index_find(arena, hash, key, key_length);
    uint32_t keep = place ? slot_at(arena, place) : MGC_NO_SLOT, slot;
    struct mgc_rate rate = place ? arena->links[keep].rate : mgc_rate_begin(arena->control->now);
    if (place && is_gone(arena, mgc_slot_block(arena, keep))) {
        mgc_unpublish(arena, keep, place, 0);
        mgc_retire(arena);
        keep = MGC_NO_SLOT;
    }
    /* It may come to be due while room is made, and go then: publish() looks again for what it replaces. */
    int error = make_room(arena, bytes, MGC_VALUE_OFFSET(key_length, traits->flags) + MGC_PADDING(traits->flags) + value_length,
                          keep, &offset, &slot);
    if (error)
        return error;
    struct mgc_block *block = mgc_heap_block(&arena->heap, offset);
    block->slot = slot;
    block->era = atomic_load_explicit(&arena->header->era, memory_order_relaxed);
    block->key_length = key_length & 0x1ffff;
    block->flags = traits->flags & MGC_FLAGS;
    block->value_length = value_length & ((1ull << 40) - 1);
    block->version = traits->version ? traits->version : mgc_new_version(arena);
    memcpy((uint8_t *)block + MGC_KEY_OFFSET, key, key_length);
    if (block->flags & MGC_COPY)
        *mgc_owners_version(block) = traits->owners_version;
    atomic_store_explicit(&arena->slots[slot].word, 0, memory_order_relaxed);
    arena->slots[slot].list = mgc_list_of(block) & 1;
    arena->links[slot].hash = hash;
    arena->links[slot].rate = rate;
    arena->filling += bytes;
    *reservation = (struct mgc_reservation){.offset = offset,
                                            .slot = slot,
                                            .value = (uint8_t *)block + mgc_value_offset(block),
                                            .length = value_length,
                                            .fresh = traits->fresh,
                                            .dead = traits->dead};
    return 0;
}

void mgc_arena_abandon(struct mgc_arena *arena, const struct mgc_reservation *reservation) {
    arena->filling -= mgc_entry_bytes(mgc_heap_block(&arena->heap, reservation->offset));
    mgc_slot_give(arena, reservation->slot);
    mgc_heap_free(&arena->heap, reservation->offset); /* it had no word: nobody can have pinned it */
}

int mgc_arena_publish(struct mgc_arena *arena, const struct mgc_reservation *reservation) {
    struct mgc_block *block = mgc_heap_block(&arena->heap, reservation->offset);
    struct mgc_slot *slot = &arena->slots[reservation->slot];
    uint64_t hash = arena->links[reservation->slot].hash, word = mgc_word(hash, reservation->offset);
    if (!mgc_is_of_this_era(arena, block)) {
        mgc_arena_abandon(arena, reservation);
        return 0;
    }
    _Atomic uint64_t *place =
        mgc_index_find(arena, hash, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length);
    uint32_t replaced = place ? slot_at(arena, place) : MGC_NO_SLOT;
    /* A rate is the key's, and outlives a value of it; the get that loads a key begins it, and is not counted. */
    if (place)
        arena->links[reservation->slot].rate = arena->links[replaced].rate;
    if (!place) {
        place = mgc_index_room(arena, hash, &replaced);
        if (!place) { /* both buckets are full for good */
            place = mgc_index_place(arena, replaced);
            if (mgc_is_of_this_era(arena, mgc_slot_block(arena, replaced)))
                mgc_add(&arena->header->lists[arena->slots[replaced].list].evictions, 1);
        }
    }
    if (block->flags & MGC_AGED)
        store_ages(mgc_ages_of(block), mgc_arena_clock(arena), reservation->fresh, reservation->dead);
    /* The slot before the word: whoever adopts the segment finds for each published word a slot that knows it. */
    slot->checksum = mgc_checksum(arena->header->seed, block);
    slot->value_checksum = arena->header->checksums ? mgc_value_checksum(arena->header->seed, block) : 0;
    atomic_store_explicit(&slot->word, word, memory_order_relaxed);
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
    mgc_reclaim_later(arena, reservation->slot);
    /* Two values of one key, filled side by side, each counted on replacing the same entry. */
    mgc_evict_for_budget(arena, 0, reservation->slot);
    return 1;
}

/* The slot of a key's entry, or MGC_NO_SLOT. */
static uint32_t slot_of(const struct mgc_arena *arena, const uint8_t *key, size_t key_length) {
    uint64_t hash = mgc_hash(arena->header->seed, key, key_length);
    _Atomic uint64_t *place = mgc_index_find(arena, hash, key, key_length);
    return place ? slot_at(arena, place) : MGC_NO_SLOT;
}

static void describe(const struct mgc_block *block, uint64_t now, struct mgc_found *found) {
    *found = (struct mgc_found){.value = (const uint8_t *)block + mgc_value_offset(block),
                                .length = block->value_length,
                                .version = block->version,
                                .flags = block->flags,
                                .fresh = MGC_EVER,
                                .dead = MGC_EVER};
    if (block->flags & MGC_COPY && *mgc_owners_version(block))
        found->version = *mgc_owners_version(block);
    if (block->flags & MGC_AGED) {
        const struct mgc_ages *ages = mgc_ages_of(block);
        found->fresh = mgc_time_left(now, atomic_load_explicit(&ages->fresh_until, memory_order_relaxed));
        found->dead = mgc_time_left(now, atomic_load_explicit(&ages->dead_at, memory_order_relaxed));
        found->refresh_due = mgc_is_stale(ages, now) && atomic_load_explicit(&ages->refresh_at, memory_order_relaxed) <= now;
    }
}

/* The slot of a key's entry, or MGC_NO_SLOT; `kept`: also of one that is dead and kept. */
static uint32_t look(const struct mgc_arena *arena, const uint8_t *key, size_t key_length, int kept,
                     struct mgc_found *found) {
    uint32_t slot = slot_of(arena, key, key_length);
    if (slot == MGC_NO_SLOT)
        return MGC_NO_SLOT;
    const struct mgc_block *block = mgc_slot_block(arena, slot);
    if (!mgc_is_of_this_era(arena, block))
        return MGC_NO_SLOT;
    uint64_t now = 0;
    if (block->flags & MGC_AGED) {
        now = mgc_arena_clock(arena);
        if (mgc_is_dead(mgc_ages_of(block), now) && (!kept || mgc_entry_kept_until(arena, block) <= now))
            return MGC_NO_SLOT;
    }
    describe(block, now, found);
    return slot;
}

int mgc_arena_find(struct mgc_arena *arena, const uint8_t *key, size_t key_length, struct mgc_found *found) {
    uint32_t slot = look(arena, key, key_length, 0, found);
    if (slot == MGC_NO_SLOT)
        return 0;
    mgc_lru_touch(arena, slot);
    return 1;
}

int mgc_arena_find_kept(struct mgc_arena *arena, const uint8_t *key, size_t key_length, struct mgc_found *found) {
    return look(arena, key, key_length, 1, found) != MGC_NO_SLOT;
}

int mgc_arena_serve(struct mgc_arena *arena, const uint8_t *key, size_t key_length, struct mgc_found *found,
                    double *minute_qps) {
    uint32_t slot = look(arena, key, key_length, 0, found), now = arena->control->now;
    if (slot == MGC_NO_SLOT)
        return 0;
    mgc_lru_touch(arena, slot);
    mgc_rate_count(&arena->links[slot].rate, 1, now);
    *minute_qps = mgc_rate_round(mgc_rate_qps(&arena->links[slot].rate, now));
    uint32_t group = arena->header->arena;
    struct mgc_counters *totals = (struct mgc_counters *)(arena->control->base + MGC_TOTALS_OFFSET) + group;
    mgc_add(found->flags & MGC_HOT ? &totals->hot_hits : &totals->main_hits, 1);
    if (found->fresh <= 0)
        mgc_add(&totals->stale_hits, 1);
    if (found->flags & MGC_ABSENT)
        mgc_add(&totals->absent_hits, 1);
    mgc_control_count_request(arena->control, group);
    return 1;
}

double mgc_arena_minute_qps(const struct mgc_arena *arena, const uint8_t *key, size_t key_length) {
    uint32_t slot = slot_of(arena, key, key_length);
    if (slot == MGC_NO_SLOT || !mgc_is_of_this_era(arena, mgc_slot_block(arena, slot)))
        return 0;
    return mgc_rate_qps(&arena->links[slot].rate, arena->control->now);
}

int mgc_arena_remove(struct mgc_arena *arena, const uint8_t *key, size_t key_length, uint64_t version) {
    uint32_t slot = slot_of(arena, key, key_length);
    if (slot == MGC_NO_SLOT)
        return 0;
    const struct mgc_block *block = mgc_slot_block(arena, slot);
    struct mgc_found found;
    describe(block, block->flags & MGC_AGED ? mgc_arena_clock(arena) : 0, &found);
    int there = mgc_is_of_this_era(arena, block) && found.dead > 0 && !(found.flags & MGC_ABSENT);
    if (version && found.version != version)
        return 0;
    mgc_unpublish(arena, slot, mgc_index_place(arena, slot), 0);
    mgc_retire(arena);
    return there;
}

/* Publishes an entry anew, with ages. */
static int age(struct mgc_arena *arena, uint32_t slot, int64_t fresh, int64_t dead) {
    const struct mgc_block *block = mgc_slot_block(arena, slot);
    struct mgc_traits traits = {.flags = block->flags | MGC_AGED, .version = block->version, .fresh = fresh, .dead = dead};
    struct mgc_reservation reservation;
    if (block->flags & MGC_COPY)
        traits.owners_version = *mgc_owners_version(block);
    if (mgc_arena_reserve(arena, (const uint8_t *)block + MGC_KEY_OFFSET, block->key_length, block->value_length, &traits,
                          &reservation) != 0)
        return 0;
    /* It is still where it was: what is replaced stays until then. */
    memcpy(reservation.value, (const uint8_t *)block + mgc_value_offset(block), block->value_length);
    return mgc_arena_publish(arena, &reservation);
}

int mgc_arena_touch(struct mgc_arena *arena, const uint8_t *key, size_t key_length, int64_t fresh, int64_t dead) {
    struct mgc_found found;
    uint32_t slot = look(arena, key, key_length, 0, &found);
    if (slot == MGC_NO_SLOT)
        return 0;
    if (found.flags & MGC_AGED) {
        store_ages(mgc_ages_of(mgc_slot_block(arena, slot)), mgc_arena_clock(arena), fresh, dead);
        mgc_reclaim_later(arena, slot);
    } else if ((fresh != MGC_EVER || dead != MGC_EVER) && !age(arena, slot, fresh, dead)) {
        /* Its value would outlive what was said of it. */
        mgc_arena_remove(arena, key, key_length, 0);
        return 0;
    }
    return 1;
}

static int pause_refreshes(struct mgc_arena *arena, uint32_t slot, int64_t pause) {
    if (slot == MGC_NO_SLOT)
        return 0;
    const struct mgc_block *block = mgc_slot_block(arena, slot);
    if (block->flags & MGC_AGED) {
        uint64_t until = mgc_time_at(mgc_arena_clock(arena), pause < MGC_LONGEST_PAUSE ? pause : MGC_LONGEST_PAUSE);
        atomic_store_explicit(&mgc_ages_of(block)->refresh_at, until, memory_order_relaxed);
    }
    return 1;
}

int mgc_arena_put_off(struct mgc_arena *arena, const uint8_t *key, size_t key_length, int64_t pause) {
    struct mgc_found found;
    return pause_refreshes(arena, look(arena, key, key_length, 0, &found), pause);
}

int mgc_arena_revive(struct mgc_arena *arena, const uint8_t *key, size_t key_length, int64_t pause) {
    struct mgc_found found;
    uint32_t slot = look(arena, key, key_length, 1, &found);
    if (!pause_refreshes(arena, slot, pause)) /* first: it is to be asked for later by whoever finds it again */
        return 0;
    if (found.dead <= 0) {
        const struct mgc_block *block = mgc_slot_block(arena, slot);
        atomic_store_explicit(&mgc_ages_of(block)->dead_at, mgc_entry_kept_until(arena, block), memory_order_relaxed);
    }
    return 1;
}

void mgc_arena_sweep(struct mgc_arena *arena) { mgc_retire(arena); }
