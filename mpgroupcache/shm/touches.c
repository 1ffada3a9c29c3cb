#include "touches.h"

#include <stdlib.h>

#include "lru.h"

/* Counts a touch in its entry's rate, as the number of requests that it stands for. */
static void count_touch(struct mgc_control *control, const struct mgc_touched *touched, double requests) {
    struct mgc_arena *arena = control->arenas[touched->time & 0xff];
    uint32_t slot = arena ? mgc_lru_touched(arena, touched->word) : MGC_NO_SLOT;
    if (slot != MGC_NO_SLOT)
        mgc_rate_count(&arena->links[slot].rate, requests, control->now);
}

static size_t collect_touches(struct mgc_control *control, uint32_t i, struct mgc_touched *touched) {
    struct mgc_region *region = mgc_region_at(control, i);
    uint64_t head = atomic_load_explicit(&region->touch_head, memory_order_acquire), tail = control->tails[i];
    size_t count = 0;
    if (head - tail > MGC_TOUCHES)
        tail = head - MGC_TOUCHES;
    uint64_t first = tail;
    for (; tail != head; tail++) {
        struct mgc_touch *touch = &region->touches[tail & (MGC_TOUCHES - 1)];
        touched[count].word = atomic_load_explicit(&touch->word, memory_order_relaxed);
        touched[count++].time = atomic_load_explicit(&touch->time, memory_order_relaxed);
    }
    /* The worker may have come round the ring meanwhile. A touch that it was overwriting at `now` is number now - SIZE:
     * that one and all before it may be torn. Pairs with the fence of the get() that writes a touch. */
    atomic_thread_fence(memory_order_acquire);
    uint64_t now = atomic_load_explicit(&region->touch_head, memory_order_relaxed), torn = 0;
    if (now - first >= MGC_TOUCHES)
        torn = now - MGC_TOUCHES + 1 - first;
    if (torn > count)
        torn = count;
    uint64_t lost = first - control->tails[i] + torn;
    control->touches_lost += lost;
    control->tails[i] = head;
    count -= torn;
    if (torn)
        memmove(touched, touched + torn, count * sizeof *touched);
    /* Those that were lost were of the same keys, as far as one can tell. */
    double requests = count ? 1 + (double)lost / (double)count : 0;
    for (size_t n = 0; n < count; n++)
        count_touch(control, &touched[n], requests);
    /* Hits may follow each other faster than the time that a touch has room for: one worker's keep their order. */
    for (size_t n = 1; n < count; n++)
        if (touched[n].time >> 8 <= touched[n - 1].time >> 8)
            touched[n].time = ((touched[n - 1].time >> 8) + 1) << 8 | (touched[n].time & 0xff);
    return count;
}

static int compare_newest_first(const void *a, const void *b) {
    uint64_t x = ((const struct mgc_touched *)a)->time, y = ((const struct mgc_touched *)b)->time;
    return (x < y) - (x > y);
}

static size_t drain(struct mgc_control *control) {
    size_t count = 0;
    uint32_t regions = control->regions;
    for (uint32_t i = 0; i < regions; i++) {
        if (atomic_load_explicit(&mgc_region_at(control, i)->touch_head, memory_order_relaxed) == control->tails[i])
            continue;
        if (control->touched_room < count + MGC_TOUCHES) {
            size_t room = 2 * control->touched_room + MGC_TOUCHES;
            struct mgc_touched *touched = realloc(control->touched, room * sizeof *touched);
            if (!touched)
                break; /* the rest is drained next time */
            control->touched = touched;
            control->touched_room = room;
        }
        count += collect_touches(control, i, control->touched + count);
    }
    if (!count)
        return 0;
    qsort(control->touched, count, sizeof *control->touched, compare_newest_first);
    struct mgc_lru_cursor cursors[MGC_MAX_GROUPS];
    uint64_t begun[MGC_MAX_GROUPS / 64] = {0};
    for (size_t n = 0; n < count; n++) {
        uint32_t id = control->touched[n].time & 0xff;
        struct mgc_arena *arena = control->arenas[id];
        if (!arena)
            continue;
        if (!(begun[id / 64] >> id % 64 & 1)) {
            begun[id / 64] |= 1ull << id % 64;
            mgc_lru_begin(arena, &cursors[id]);
        }
        mgc_lru_merge(arena, &cursors[id], &control->touched[n]);
    }
    return count;
}

size_t mgc_control_drain(struct mgc_control *control) {
    uint64_t begun = mgc_nanoseconds();
    size_t touches = drain(control);
    mgc_drain_took(control, touches, begun, mgc_nanoseconds());
    return touches;
}

void mgc_control_drain_for_victims(struct mgc_control *control) {
    if (!mgc_drain_is_put_off(control, mgc_nanoseconds()))
        mgc_control_drain(control);
}
