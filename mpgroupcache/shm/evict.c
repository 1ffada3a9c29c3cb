#include "evict.h"

#include "index.h"
#include "lru.h"
#include "pins.h"
#include "reclaim.h"
#include "space.h"
#include "touches.h"

#define MAX_EVICTIONS 65536   /* of one insert; beyond that its value is served uncached, and the next has it easier */
#define MAX_PASSED_OVER 4096  /* pinned victims of one insert, likewise */
#define BATCH 16              /* evictions at a time, where an insert needs fewer; and the room that this makes is ... */
#define AHEAD_SHARE 1024      /* ... at most this part of the budget */
#define WINDOW_BYTES (64u << 10) /* blocks from this size on are made room for by windows, smaller ones by LRU alone */
#define WINDOW_STARTS 16      /* LRU candidates from which a window is grown */
#define SMALL_EVICTIONS 64    /* by LRU for one small block, before a window is tried for it too */
#define RECLAIM_STEPS 64      /* for one block, before anything that lives goes; then its room is looked for again */
#define STEP_MIN (64u << 10)  /* bytes committed at a time, and ... */
#define STEP_MAX (16u << 20)  /* ... at most: what is committed at once stalls the misses meanwhile */

void mgc_evict(struct mgc_arena *arena, uint32_t slot) {
    if (mgc_is_of_this_era(arena, mgc_slot_block(arena, slot)))
        mgc_add(&arena->header->lists[arena->slots[slot].list].evictions, 1);
    mgc_unpublish(arena, slot, mgc_index_place(arena, slot), 0);
}

static int pinned(const struct mgc_arena *arena, uint32_t slot) {
    return mgc_pinned(arena->control, arena->header->arena, mgc_word_offset(mgc_slot_word(arena, slot)));
}

/* The next victim by Go's rule: of the hot list if that holds more than an eighth of the main list's bytes, else of the
 * main list, the least recently used. Pins are those of the last scan: a hint, so that what is surely in use is passed
 * over. An entry with a view is in use now, and goes to the front of its list. */
static uint32_t next_victim(struct mgc_arena *arena, uint32_t keep, unsigned *passed_over) {
    uint32_t first = mgc_list_bytes(arena, MGC_HOT) > mgc_list_bytes(arena, MGC_MAIN) / 8 ? MGC_HOT : MGC_MAIN;
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint32_t list = first ^ turn, slot = arena->lists[list].oldest;
        uint64_t left = atomic_load_explicit(&arena->header->lists[list].items, memory_order_relaxed);
        while (slot != MGC_NO_SLOT && left--) {
            uint32_t newer = arena->links[slot].newer;
            if (slot != keep && !pinned(arena, slot))
                return slot;
            if (slot != keep) {
                if (++*passed_over > MAX_PASSED_OVER)
                    return MGC_NO_SLOT;
                mgc_lru_touch(arena, slot);
            }
            slot = newer;
        }
    }
    return MGC_NO_SLOT;
}

static uint64_t used_bytes(const struct mgc_arena *arena) {
    return mgc_list_bytes(arena, MGC_MAIN) + mgc_list_bytes(arena, MGC_HOT) + arena->dead.bytes + arena->filling;
}

/* Without a wheel nothing is due at any time. */
static uint64_t clock_for_wheel(const struct mgc_arena *arena) { return arena->wheel ? mgc_arena_clock(arena) : 0; }

/* Evicts the next victim, unless that frees more than `most` bytes. Returns whether it did. */
static int evict_next(struct mgc_arena *arena, uint32_t keep, unsigned *passed_over, uint64_t most) {
    uint32_t victim = next_victim(arena, keep, passed_over);
    if (victim == MGC_NO_SLOT || mgc_entry_bytes(mgc_slot_block(arena, victim)) > most)
        return 0;
    mgc_evict(arena, victim);
    return 1;
}

int mgc_evict_for_budget(struct mgc_arena *arena, uint64_t bytes, uint32_t keep) {
    unsigned evictions = 0, passed_over = 0, steps = 0;
    if (used_bytes(arena) + bytes <= arena->budget)
        return 0;
    /* What is dead goes before what lives, and whatever workers have hit: that needs neither drain nor scan. Some more than
     * is needed, at the cost of the same scan. */
    for (uint64_t now = clock_for_wheel(arena);
         (used_bytes(arena) + bytes > arena->budget ? steps < MAX_EVICTIONS : steps < BATCH) &&
         mgc_reclaim_step(arena, now) >= 0;)
        steps++;
    if (used_bytes(arena) + bytes <= arena->budget) {
        mgc_retire(arena);
        return 0;
    }
    mgc_control_drain_for_victims(arena->control); /* hits of workers up to now count in the choice of victims */
    mgc_control_scan(arena->control);
    while (used_bytes(arena) + bytes > arena->budget && evictions < MAX_EVICTIONS &&
           evict_next(arena, keep, &passed_over, UINT64_MAX))
        evictions++;
    /* A drain and two scans take from every worker the cache lines that its next hits write. For a few victims they cost
     * the same as for one: so some go now for inserts to come, within a share of the budget that nobody misses. */
    for (uint64_t least = arena->budget - arena->budget / AHEAD_SHARE; evictions < BATCH; evictions++) {
        uint64_t used = used_bytes(arena) + bytes;
        if (used <= least || !evict_next(arena, keep, &passed_over, used - least))
            break;
    }
    mgc_retire(arena);
    return used_bytes(arena) + bytes <= arena->budget ? 0 : MGC_NO_ROOM;
}

/* Gives up some of what is dead. Returns whether anything was. */
static int reclaim_some(struct mgc_arena *arena) {
    uint64_t now = clock_for_wheel(arena);
    int reclaimed = 0, went = 0;
    for (unsigned steps = 0; steps < RECLAIM_STEPS && (went = mgc_reclaim_step(arena, now)) >= 0; steps++)
        reclaimed |= went;
    if (reclaimed)
        mgc_retire(arena);
    return reclaimed;
}

int mgc_evict_one(struct mgc_arena *arena, uint32_t keep) {
    unsigned passed_over = 0;
    if (reclaim_some(arena))
        return 0;
    mgc_control_scan(arena->control);
    uint32_t victim = next_victim(arena, keep, &passed_over);
    if (victim == MGC_NO_SLOT)
        return MGC_NO_ROOM;
    mgc_evict(arena, victim);
    mgc_retire(arena);
    return 0;
}

static uint64_t at_least(uint64_t bytes, uint64_t least) { return bytes > least ? bytes : least; }

static uint64_t at_most(uint64_t bytes, uint64_t most) { return bytes < most ? bytes : most; }

/* Commits more memory for a block, if that is due. Free memory of an eighth of the budget is enough to find room in; more
 * would only be fragmented too. */
static int extend(struct mgc_arena *arena, uint64_t bytes) {
    struct mgc_heap *heap = &arena->heap;
    uint64_t slack = at_least(arena->budget / 8, STEP_MIN), tail = 0;
    /* In proportion to what is used, or much of a fresh arena's memory would be a step that is not. */
    uint64_t step = at_least(at_most(heap->used / 16, at_most(arena->budget / 32, STEP_MAX)), STEP_MIN);
    if (heap->last && mgc_heap_block(heap, heap->last)->slot == MGC_SLOT_FREE)
        tail = mgc_block_bytes(mgc_heap_block(heap, heap->last)); /* less than `bytes`, or alloc had taken it */
    uint64_t need = mgc_page_up(bytes - tail), room = arena->entries_limit - heap->end;
    for (;;) {
        uint64_t most = at_most(step, arena->commit_limit) & ~(uint64_t)(MGC_PAGE - 1);
        uint64_t grow = at_least(need, at_most(most, room));
        uint64_t free_after = heap->end - heap->start - heap->used + grow - bytes;
        if (grow > room || free_after > slack + step)
            return -1;
        if (mgc_arena_commit(arena, heap->end, grow) == 0) {
            mgc_heap_extend(heap, grow);
            /* Before any word that names the new memory is released: get()'s bound. */
            atomic_store_explicit(&arena->header->entries_end, heap->end, memory_order_release);
            return 0;
        }
        if (grow == need) /* else a smaller step may be there */
            return -1;
    }
}

struct window {
    uint64_t from, to; /* the first block, and the end of the last */
    double cost;
};

/* What evicting a block costs: bytes times recency. 0 for free ones; negative where it must not be evicted. */
static double cost_of(const struct mgc_arena *arena, uint64_t offset, uint64_t now, uint32_t keep) {
    const struct mgc_block *block = mgc_heap_block(&arena->heap, offset);
    if (block->slot == MGC_SLOT_FREE)
        return 0;
    if (block->slot >= MGC_SLOT_RANGE || block->slot == keep || mgc_slot_word(arena, block->slot) == 0 ||
        pinned(arena, block->slot))
        return -1; /* limbo, being filled, or in use */
    if (!mgc_is_of_this_era(arena, block))
        return 0;
    uint64_t tick = arena->slots[block->slot].tick;
    return (double)mgc_block_bytes(block) / (double)(now > tick ? now - tick : 1);
}

static int grow_window(const struct mgc_arena *arena, uint64_t start, uint64_t bytes, uint64_t now, uint32_t keep,
                       double limit, struct window *window) {
    const struct mgc_heap *heap = &arena->heap;
    *window = (struct window){start, start + mgc_block_bytes(mgc_heap_block(heap, start)), cost_of(arena, start, now, keep)};
    while (window->to - window->from < bytes) {
        uint64_t left = mgc_heap_prev(heap, window->from), right = window->to < heap->end ? window->to : 0;
        double left_cost = left ? cost_of(arena, left, now, keep) : -1;
        double right_cost = right ? cost_of(arena, right, now, keep) : -1;
        if ((left_cost < 0 && right_cost < 0) || window->cost >= limit)
            return 0;
        uint64_t left_bytes = left ? mgc_block_bytes(mgc_heap_block(heap, left)) : 0;
        uint64_t right_bytes = right ? mgc_block_bytes(mgc_heap_block(heap, right)) : 0;
        /* The side that costs less for each byte. */
        if (right_cost < 0 || (left_cost >= 0 && left_cost * (double)right_bytes <= right_cost * (double)left_bytes)) {
            window->from = left;
            window->cost += left_cost;
        } else {
            window->to = right + right_bytes;
            window->cost += right_cost;
        }
    }
    return window->cost < limit;
}

/* Evicts the neighbours that together make room for a large block at the least loss: LRU alone would have to empty most
 * of the arena before two of its victims happen to lie side by side. */
static int evict_window(struct mgc_arena *arena, uint64_t bytes, uint32_t keep) {
    struct window best = {.cost = 1e300}, window;
    uint64_t now = mgc_ticks();
    mgc_control_scan(arena->control);
    int found = 0;
    for (uint32_t list = 0; list < 3; list++) {
        unsigned starts = 0, passed_over = 0;
        for (uint32_t slot = arena->lists[list].oldest;
             slot != MGC_NO_SLOT && starts < WINDOW_STARTS && passed_over < MAX_PASSED_OVER;
             slot = arena->links[slot].newer) {
            if (slot == keep || pinned(arena, slot)) {
                passed_over++;
                continue;
            }
            starts++;
            uint64_t start = mgc_word_offset(mgc_slot_word(arena, slot));
            if (grow_window(arena, start, bytes, now, keep, best.cost, &window)) {
                best = window;
                found = 1;
            }
        }
    }
    if (!found)
        return 0;
    for (uint64_t offset = best.from, next; offset && offset < best.to; offset = next) {
        next = mgc_heap_next(&arena->heap, offset);
        if (mgc_heap_block(&arena->heap, offset)->slot < MGC_SLOT_RANGE)
            mgc_evict(arena, mgc_heap_block(&arena->heap, offset)->slot);
    }
    mgc_retire(arena);
    return 1;
}

uint64_t mgc_evict_for_block(struct mgc_arena *arena, uint64_t bytes, uint32_t keep) {
    int prepared = 0;
    for (unsigned round = 0;; round++) {
        uint64_t offset = mgc_heap_alloc(&arena->heap, bytes);
        if (offset || extend(arena, bytes) == 0) {
            if (offset)
                return offset;
            continue;
        }
        if (!prepared++)
            mgc_control_drain_for_victims(arena->control);
        if (round > 4 * SMALL_EVICTIONS)
            return 0;
        if (bytes < WINDOW_BYTES && round < SMALL_EVICTIONS ? mgc_evict_one(arena, keep) != 0
                                                            : !evict_window(arena, bytes, keep))
            return 0;
    }
}
