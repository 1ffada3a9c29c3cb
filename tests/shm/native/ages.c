/* Ages, the wheel of what will die, eras and versions: what of them cannot be brought about from Python. */
#include "world.h"

#include <sys/syscall.h>
#include <time.h>

static struct mgc_control *control;

/* The core's clock, in place of the C library's: it moves by so many seconds each time that it is read. */
static int64_t leap, leaped;

int clock_gettime(clockid_t clock, struct timespec *now) {
    long error = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_BOOTTIME)
        now->tv_sec += leaped += leap;
    return (int)error;
}

/* ---- The wheel, against an array of times ---- */

#define TICK (1ull << MGC_WHEEL_TICK_LOG2)

enum { SLOTS = 300 };

static struct {
    uint64_t when;
    unsigned moves;
    int in;
} slots[SLOTS];

static void add(struct mgc_wheel *wheel, uint32_t slot, uint64_t when) {
    slots[slot].when = when;
    slots[slot].in = 1;
    REQUIRE(mgc_wheel_add(wheel, slot, when, SLOTS) == 0, "no memory");
}

/* Up to `most` pops at `now`, as the arena does them. Returns whether nothing was left. */
static int pop_some(struct mgc_wheel *wheel, uint64_t now, unsigned most) {
    while (most--) {
        uint32_t slot = mgc_wheel_pop(wheel, now);
        if (slot == MGC_WHEEL_NONE)
            return 1;
        REQUIRE(slot < SLOTS && slots[slot].in, "slot %u is not in the wheel", slot);
        if (slots[slot].when > now) {
            REQUIRE(++slots[slot].moves <= MGC_WHEEL_LEVELS, "slot %u was moved %u times", slot, slots[slot].moves);
            add(wheel, slot, slots[slot].when);
        } else {
            slots[slot].in = 0;
        }
    }
    return 0;
}

static void require_all_in_time(const struct mgc_wheel *wheel, uint64_t now) {
    uint64_t first = UINT64_MAX;
    for (uint32_t slot = 0; slot < SLOTS; slot++)
        if (slots[slot].in) {
            REQUIRE(slots[slot].when > now || now - slots[slot].when < TICK, "slot %u is due since %llu ns", slot,
                    (unsigned long long)(now - slots[slot].when));
            first = slots[slot].when < first ? slots[slot].when : first;
        }
    uint64_t next = mgc_wheel_next(wheel), rounded = first > UINT64_MAX - TICK ? UINT64_MAX : first + TICK;
    REQUIRE((next == UINT64_MAX) == (first == UINT64_MAX), "the wheel is %s empty", next == UINT64_MAX ? "" : "not");
    REQUIRE(next <= rounded, "next at %llu, the first is due at %llu", (unsigned long long)next, (unsigned long long)first);
    REQUIRE(next > now || next == UINT64_MAX, "something is left at %llu", (unsigned long long)now);
}

static void wheels_hand_out_what_is_due(void) {
    uint64_t random = 5;
    const uint64_t starts[] = {0, 1ull << 44, UINT64_MAX - (1ull << 40), UINT64_MAX - 50 * TICK, 1ull << 63};
    for (unsigned life = 0; life < 200; life++) {
        uint64_t now = life % 2 ? next_random(&random) >> 2 : starts[life / 2 % 5] + below(&random, TICK);
        struct mgc_wheel *wheel = mgc_wheel_make(now);
        memset(slots, 0, sizeof slots);
        for (unsigned round = 0; round < 2000; round++) {
            uint32_t slot = (uint32_t)below(&random, SLOTS);
            switch (below(&random, 4)) {
            case 0:
            case 1: { /* anew, or at another time: any, near ones more often; and late ones */
                uint64_t ahead = next_random(&random) >> below(&random, 64), when = now + ahead;
                mgc_wheel_remove(wheel, slot);
                slots[slot].moves = 0;
                add(wheel, slot, below(&random, 10) == 0 && now > ahead ? now - ahead : when < now ? UINT64_MAX - 1 : when);
                break;
            }
            case 2:
                mgc_wheel_remove(wheel, slot);
                slots[slot].in = 0;
                break;
            default: {
                uint64_t ahead = next_random(&random) >> (20 + below(&random, 44));
                if (now + ahead > now && now + ahead < UINT64_MAX - TICK) /* the last tick never ends */
                    now += ahead;
                pop_some(wheel, now, (unsigned)below(&random, 6)); /* others come before the rest is popped */
            }
            }
            if (round % 16 == 0) {
                REQUIRE(pop_some(wheel, now, 100 * SLOTS), "it goes on for ever");
                require_all_in_time(wheel, now);
            }
        }
        mgc_wheel_free(wheel);
    }
}

/* However long nobody has looked: one pop is a few steps, which is seen in how soon this ends. */
static void a_wheel_that_idles_skips_what_is_empty(void) {
    struct mgc_wheel *wheel = mgc_wheel_make(1);
    memset(slots, 0, sizeof slots);
    for (uint64_t now = 1, round = 0; round < 1000000; round++) {
        add(wheel, 7, now + (1ull << 42));
        now += (1ull << 42) + TICK;
        if (round > 1000000 - 1000000 / 8)
            now = round; /* a clock that goes back: then it waits */
        else
            REQUIRE(pop_some(wheel, now, 2 * MGC_WHEEL_LEVELS) && !slots[7].in, "round %llu", (unsigned long long)round);
        mgc_wheel_remove(wheel, 7);
        slots[7].moves = 0;
    }
    mgc_wheel_free(wheel);
}

static void slots_beyond_all_numbers_are_not_in_a_wheel(void) {
    struct mgc_wheel *wheel = mgc_wheel_make(0);
    REQUIRE(mgc_wheel_add(wheel, MGC_WHEEL_FIRST, 5, UINT32_MAX) == -1, "it took a place's number");
    mgc_wheel_remove(wheel, MGC_WHEEL_FIRST);
    mgc_wheel_remove(wheel, 3);
    mgc_wheel_remove(NULL, 3);
    REQUIRE(mgc_wheel_next(wheel) == UINT64_MAX, "it is not empty");
    mgc_wheel_free(wheel);
}

/* ---- Times ---- */

static void times_end_where_the_clock_does(void) {
    REQUIRE(mgc_time_at(5, 7) == 12 && mgc_time_at(5, -5) == 0 && mgc_time_at(5, -7) == 0, "sums");
    REQUIRE(mgc_time_at(UINT64_MAX - 5, 4) == UINT64_MAX - 1 && mgc_time_at(UINT64_MAX - 5, 6) == MGC_FOREVER, "the end");
    REQUIRE(mgc_time_at(5, MGC_LONGEST) == MGC_FOREVER && mgc_time_at(5, MGC_LONGEST - 1) == 4 + MGC_LONGEST, "the longest");
    REQUIRE(mgc_time_left(5, 12) == 7 && mgc_time_left(12, 5) == -7 && mgc_time_left(5, MGC_FOREVER) == MGC_EVER, "left");
    REQUIRE(mgc_time_left(UINT64_MAX - 1, 0) == -MGC_LONGEST && mgc_time_left(0, UINT64_MAX - 1) == MGC_LONGEST, "far");
    struct mgc_ages ages = {10, 20, 0};
    REQUIRE(!mgc_is_stale(&ages, 9) && mgc_is_stale(&ages, 10) && !mgc_is_dead(&ages, 19) && mgc_is_dead(&ages, 20), "ages");
    REQUIRE(mgc_kept_until(&ages, 5) == 20 && mgc_kept_until(&ages, 15) == 25, "kept");
    REQUIRE(mgc_kept_until(&ages, UINT64_MAX - 5) == MGC_FOREVER && mgc_kept_until(&ages, MGC_FOREVER) == MGC_FOREVER, "kept");
    ages = (struct mgc_ages){MGC_FOREVER, MGC_FOREVER, 0};
    REQUIRE(!mgc_is_stale(&ages, UINT64_MAX - 1) && mgc_kept_until(&ages, 5) == MGC_FOREVER, "for ever");
}

/* ---- Eras ---- */

static struct mgc_found found;

static int find(struct mgc_arena *arena, uint64_t key) {
    uint8_t bytes[32];
    return mgc_arena_find(arena, bytes, make_key(key, bytes), &found);
}

/* Keys of one pair of buckets, dead and alive: what is dead gives way, and is no eviction. */
static void dead_entries_give_way_in_crowded_buckets(void) {
    enum { PLACES = 2 * MGC_BUCKET_WORDS };
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    mgc_bucket *wanted[2], *buckets[2];
    uint64_t keys[2 * PLACES], key = 0;
    uint8_t bytes[32];
    mgc_buckets(arena->base, arena->descriptor, mgc_hash(arena->header->seed, bytes, make_key(0, bytes)), wanted);
    for (int count = 0; count < 2 * PLACES; key++) {
        mgc_buckets(arena->base, arena->descriptor, mgc_hash(arena->header->seed, bytes, make_key(key, bytes)), buckets);
        if ((buckets[0] == wanted[0] && buckets[1] == wanted[1]) || (buckets[0] == wanted[1] && buckets[1] == wanted[0]))
            keys[count++] = key;
    }
    for (int i = 0; i < PLACES; i++)
        REQUIRE(put(arena, keys[i], 1, 4, MGC_MAIN), "no room");
    mgc_arena_clear(arena);
    for (int i = 0; i < PLACES; i++) {
        REQUIRE(put(arena, keys[PLACES + i], 1, 4, MGC_MAIN), "no room");
        for (int j = 0; j <= i; j++)
            REQUIRE(find(arena, keys[PLACES + j]), "entry %d went for entry %d", j, i);
        require_sound(arena);
    }
    REQUIRE(arena->header->lists[MGC_MAIN].evictions == 0 && arena->dead.items == 0, "evictions");
    close_arena(arena);
}

/* Growth takes dead entries along, and finds them again. */
static void the_index_grows_over_dead_entries(void) {
    struct mgc_arena *arena = open_arena(control, 4 << 20, 0);
    uint64_t descriptor = arena->descriptor, key = 0;
    struct mgc_traits traits = {.fresh = 1000000, .dead = MGC_LONGEST - 1};
    for (; key < 300; key++) {
        traits.flags = (key % 2 ? MGC_MAIN : MGC_HOT) | (key % 3 ? MGC_AGED : 0);
        REQUIRE(put_with(arena, key, 1, 4, &traits), "no room");
    }
    mgc_arena_clear(arena);
    for (; arena->descriptor == descriptor; key++)
        REQUIRE(put(arena, key, 1, 4, MGC_MAIN) && key < 1000, "no room, or no growth");
    require_sound(arena);
    int more;
    REQUIRE(arena->dead.items == 300 && mgc_arena_reclaim(arena, 301, &more) == 0 && !more, "not all were reclaimed");
    REQUIRE(arena->header->lists[MGC_MAIN].items == key - 300 && arena->header->lists[MGC_HOT].items == 0, "items");
    traits.flags = MGC_AGED;
    for (uint64_t again = key; again < key + 300; again++) { /* in the slots of those that were in the wheel */
        REQUIRE(put_with(arena, again, 1, 4, &traits), "no room");
        if (again % 16 == 0)
            require_sound(arena);
    }
    require_sound(arena);
    close_arena(arena);
}

/* A value that was pinned before a clear stays what it is, and its memory comes back with its pin. */
static void what_is_pinned_outlives_its_era(void) {
    struct mgc_arena *arena = open_arena(control, 1 << 16, 0);
    struct mgc_region *region = region_of(control, 0);
    struct mgc_map map;
    struct mgc_hit hit;
    uint8_t bytes[32];
    int more;
    REQUIRE(mgc_map_attach(&map, control->base, arena->base, arena->header->size) == 0, "attach");
    REQUIRE(put_with(arena, 1, 1, 100, &(struct mgc_traits){.flags = MGC_AGED, .fresh = MGC_LONGEST, .dead = MGC_LONGEST}),
            "no room");
    REQUIRE(mgc_get(&map, region, 1, bytes, make_key(1, bytes), &hit) == MGC_HIT, "a miss");
    mgc_arena_clear(arena);
    for (uint64_t key = 2; key < 300; key++)
        REQUIRE(put(arena, key, 1, 50, MGC_MAIN), "no room");
    REQUIRE(verify_value(&hit, 1, "after the clear") == 1 && arena->limbo.count == 1, "it was reused");
    mgc_unpin(region, 1);
    mgc_arena_sweep(arena);
    REQUIRE(mgc_arena_reclaim(arena, 1, &more) == 0 && arena->limbo.count == 0, "its memory is lost");
    require_sound(arena);
    close_arena(arena);
}

/* An entry that its successor replaces may come to be due while room is made for that. */
static void what_is_replaced_may_go_before(void) {
    const int64_t hour = 3600ll * 1000000000;
    for (uint64_t words = 4; words < 600; words += 100) {
        struct mgc_arena *arena = open_arena(control, 1 << 16, 0);
        REQUIRE(put_with(arena, 1, 1, 4, &(struct mgc_traits){.flags = MGC_AGED, .fresh = 3 * hour / 2, .dead = 3 * hour / 2}),
                "no room");
        for (uint64_t key = 2; arena->header->lists[MGC_MAIN].evictions == 0; key++)
            REQUIRE(put(arena, key, 1, 50, MGC_MAIN) && find(arena, 1), "no room");
        for (uint64_t key = 1000; key < 1010; key++) { /* up to the last byte, or nearly */
            find(arena, 1);
            put(arena, key, 1, 10, MGC_MAIN);
        }
        leap = 3600;
        REQUIRE(put(arena, 1, 2, words, MGC_MAIN), "no room");
        leap = 0;
        REQUIRE((arena->expired == 1) == (words > 100), "%llu expired", (unsigned long long)arena->expired);
        require_sound(arena);
        REQUIRE(find(arena, 1) && found.length == words * 8, "it is not there");
        close_arena(arena);
    }
}

/* Just before the clock ends nothing is for ever by mistake, and nothing dies that is for ever. */
static void ages_hold_at_the_end_of_the_clock(void) {
    struct mgc_control_header *header = (struct mgc_control_header *)(void *)control->base;
    uint64_t offset = header->clock_offset, second = 1000000000;
    int more;
    header->clock_offset += UINT64_MAX - mgc_clock(header) - 3600 * second;
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    const struct mgc_traits traits[] = {{.flags = MGC_AGED, .fresh = 5 * (int64_t)second, .dead = 10 * (int64_t)second},
                                        {.flags = MGC_AGED, .fresh = 5 * (int64_t)second, .dead = MGC_EVER},
                                        {.flags = MGC_AGED, .fresh = 4000 * (int64_t)second, .dead = 8000 * (int64_t)second}};
    for (uint64_t key = 0; key < 3; key++)
        REQUIRE(put_with(arena, key, 1, 4, &traits[key]), "no room");
    require_sound(arena);
    REQUIRE(find(arena, 0) && !found.refresh_due && find(arena, 2) && found.fresh == MGC_EVER, "at once");
    header->clock_offset += 11 * second;
    REQUIRE(!find(arena, 0) && find(arena, 1) && found.refresh_due && found.dead == MGC_EVER && find(arena, 2), "later");
    header->clock_offset += second; /* for the wheel's tick */
    uint64_t expired = 0;
    for (more = 1; more;)
        expired += mgc_arena_reclaim(arena, 1, &more);
    REQUIRE(expired == 1 && mgc_arena_next_death(arena) == MGC_EVER, "%llu expired", (unsigned long long)expired);
    require_sound(arena);
    close_arena(arena);
    header->clock_offset = offset;
}

int main(void) {
    control = open_control();
    wheels_hand_out_what_is_due();
    a_wheel_that_idles_skips_what_is_empty();
    slots_beyond_all_numbers_are_not_in_a_wheel();
    times_end_where_the_clock_does();
    dead_entries_give_way_in_crowded_buckets();
    the_index_grows_over_dead_entries();
    what_is_pinned_outlives_its_era();
    what_is_replaced_may_go_before();
    ages_hold_at_the_end_of_the_clock();
    close_control(control);
    return 0;
}
