#include "reclaim.h"

#include "index.h"
#include "lru.h"
#include "pins.h"

void mgc_reclaim_later(struct mgc_arena *arena, uint32_t slot) {
    const struct mgc_block *block = mgc_slot_block(arena, slot);
    mgc_wheel_remove(arena->wheel, slot);
    uint64_t when = block->flags & MGC_AGED ? mgc_entry_kept_until(arena, block) : MGC_FOREVER;
    if (when == MGC_FOREVER)
        return;
    if (!arena->wheel)
        arena->wheel = mgc_wheel_make(mgc_arena_clock(arena));
    /* Without memory it is dead to all who look, and goes as others go. */
    if (arena->wheel)
        (void)mgc_wheel_add(arena->wheel, slot, when, arena->links_room);
}

void mgc_set_ages(struct mgc_control *control, uint32_t group, const struct mgc_group_ages *ages) {
    struct mgc_group_row *row = mgc_row_of(control, group);
    struct mgc_arena *arena = control->arenas[group];
    int kept_as_before = row->ages.stale_if_error == ages->stale_if_error;
    row->ages = *ages;
    if (kept_as_before || !arena)
        return;
    for (uint32_t slot = 0; slot < arena->slot_count; slot++)
        if (mgc_slot_word(arena, slot) && mgc_is_of_this_era(arena, mgc_slot_block(arena, slot)))
            mgc_reclaim_later(arena, slot);
}

int mgc_reclaim_step(struct mgc_arena *arena, uint64_t now) {
    uint32_t slot = arena->lists[MGC_DEAD].oldest;
    if (slot == MGC_NO_SLOT) {
        slot = arena->wheel ? mgc_wheel_pop(arena->wheel, now) : MGC_WHEEL_NONE;
        if (slot == MGC_WHEEL_NONE)
            return -1;
        /* The wheel only says which to look at. The entry knows: it may have come to a place of a higher level. */
        if (mgc_entry_kept_until(arena, mgc_slot_block(arena, slot)) > now) {
            mgc_reclaim_later(arena, slot);
            return 0;
        }
        arena->expired++;
    }
    /* Also where it is pinned: then it waits in limbo, and counts for the budget no more. */
    mgc_unpublish(arena, slot, mgc_index_place(arena, slot), 0);
    return 1;
}

uint64_t mgc_arena_reclaim(struct mgc_arena *arena, uint64_t most, int *more) {
    uint64_t now = mgc_arena_clock(arena), expired;
    while (most && mgc_reclaim_step(arena, now) >= 0)
        most--;
    mgc_retire(arena);
    expired = arena->expired;
    arena->expired = 0;
    *more = arena->dead.items > 0 || (arena->wheel && mgc_wheel_next(arena->wheel) <= now);
    return expired;
}

int64_t mgc_arena_next_death(const struct mgc_arena *arena) {
    if (arena->dead.items)
        return 0;
    uint64_t next = arena->wheel ? mgc_wheel_next(arena->wheel) : MGC_FOREVER;
    if (next == MGC_FOREVER)
        return MGC_EVER;
    int64_t left = mgc_time_left(mgc_arena_clock(arena), next);
    return left > 0 ? left : 0;
}

void mgc_arena_clear(struct mgc_arena *arena) {
    struct mgc_arena_header *header = arena->header;
    /* First of all: from here on nobody finds or adopts what was there, wherever this ends. Whoever sees what follows from
     * the clear, its answer, sees it. After 2^32 of them, with nothing reclaimed in between, old entries would be back. */
    atomic_store_explicit(&header->era, atomic_load_explicit(&header->era, memory_order_relaxed) + 1, memory_order_release);
    for (uint32_t list = 0; list < 2; list++) {
        struct mgc_list_stats *stats = &header->lists[list];
        arena->dead.bytes += atomic_load_explicit(&stats->bytes, memory_order_relaxed);
        arena->dead.items += atomic_load_explicit(&stats->items, memory_order_relaxed);
        atomic_store_explicit(&stats->bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&stats->items, 0, memory_order_relaxed);
    }
    mgc_lru_bury(arena);
    if (arena->wheel)
        mgc_wheel_clear(arena->wheel);
}
