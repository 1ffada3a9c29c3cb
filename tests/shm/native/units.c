/* What of the core cannot be brought about from Python: chosen hashes, hits at the speed of C, odd heaps. */
#include "world.h"

static struct mgc_control *control;

static void hits_in_immediate_succession_keep_their_order(void) {
    enum { ENTRIES = 8 };
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    struct mgc_region *region = region_of(control, 0);
    struct mgc_map map;
    uint8_t key[32];
    REQUIRE(mgc_map_attach(&map, control->base, arena->base, arena->header->size) == 0, "attach");
    uint64_t random = 1;
    for (int round = 0; round < 1000; round++) {
        uint64_t order[ENTRIES];
        for (uint64_t i = 0; i < ENTRIES; i++) {
            order[i] = i;
            REQUIRE(put(arena, i, 1, 4, MGC_MAIN), "no room");
        }
        for (uint64_t i = ENTRIES - 1; i > 0; i--) { /* shuffled */
            uint64_t j = below(&random, i + 1), kept = order[i];
            order[i] = order[j];
            order[j] = kept;
        }
        for (int i = 0; i < ENTRIES; i++) {
            struct mgc_hit hit;
            REQUIRE(mgc_get(&map, region, 1, key, make_key(order[i], key), &hit) == MGC_HIT, "a miss");
            mgc_unpin(region, 1);
        }
        REQUIRE(mgc_control_drain(control) == ENTRIES, "touches were lost");
        uint32_t slot = arena->lists[MGC_MAIN].oldest;
        for (int i = 0; i < ENTRIES; i++, slot = arena->links[slot].newer) {
            const struct mgc_block *block = mgc_slot_block(arena, slot);
            REQUIRE(memcmp((const uint8_t *)block + MGC_KEY_OFFSET, &order[i], 8) == 0, "round %d: not hit in place %d",
                    round, i);
        }
    }
    require_sound(arena);
    close_arena(arena);
}

/* Keys that somebody chose to share two buckets cost each other their places, and do not make the index grow. */
static void chosen_keys_do_not_grow_the_index(void) {
    enum { CHOSEN = 40, PLACES = 2 * MGC_BUCKET_WORDS };
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    uint64_t descriptor = arena->descriptor;
    mgc_bucket *wanted[2], *buckets[2];
    uint64_t key = 0;
    uint8_t bytes[32];
    mgc_buckets(arena->base, descriptor, mgc_hash(arena->header->seed, bytes, make_key(0, bytes)), wanted);
    for (int found = 0; found < CHOSEN; key++) {
        mgc_buckets(arena->base, descriptor, mgc_hash(arena->header->seed, bytes, make_key(key, bytes)), buckets);
        if ((buckets[0] == wanted[0] && buckets[1] == wanted[1]) || (buckets[0] == wanted[1] && buckets[1] == wanted[0])) {
            REQUIRE(put(arena, key, 1, 4, MGC_MAIN), "no room");
            found++;
        }
    }
    REQUIRE(arena->descriptor == descriptor, "the index grew");
    struct mgc_list_stats *stats = &arena->header->lists[MGC_MAIN];
    REQUIRE(stats->items == PLACES && stats->evictions == CHOSEN - PLACES, "%llu items, %llu evictions",
            (unsigned long long)stats->items, (unsigned long long)stats->evictions);
    require_sound(arena);
    close_arena(arena);
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Keys made of the hash's own constants collide no more than others. */
static void constants_in_keys_do_not_collide(void) {
    enum { KEYS = 4096 };
    const uint64_t constants[] = {0, 0x9e3779b97f4a7c15ull, 0xd1b54a32d192ed03ull,
                                  0x9e3779b97f4a7c15ull ^ 0xd1b54a32d192ed03ull};
    static uint64_t hashes[KEYS];
    for (int layout = 0; layout < 3; layout++)
        for (size_t length = 24; length <= 40; length += 8) {
            for (uint64_t i = 0; i < KEYS; i++) {
                uint64_t key[5], constant = constants[i % 4], x = i / 4;
                for (int word = 0; word < 5; word++)
                    key[word] = layout == 2 ? constants[i >> 2 * (word % 3 + 3) & 3] ^ (i >> 2 * (word % 3) & 3)
                                            : (word % 2 == layout ? x * constants[1] : constant);
                hashes[i] = mgc_hash(0x5eed, (const uint8_t *)key, length);
            }
            qsort(hashes, KEYS, sizeof *hashes, compare);
            for (uint64_t i = 1; i < KEYS; i++)
                REQUIRE(hashes[i] != hashes[i - 1], "layout %d, %zu bytes: a collision", layout, length);
        }
}

/* A last block that is large enough, but behind many of its own size class that are not. */
static void the_last_block_is_found_behind_others(void) {
    enum { BLOCKS = 40, GRANULES = 64, LARGER = GRANULES + 1 };
    static _Alignas(MGC_LINE) uint8_t memory[(BLOCKS * (GRANULES + 2) + LARGER + 4) * MGC_GRANULE];
    struct mgc_heap heap;
    uint64_t blocks[BLOCKS];
    mgc_heap_init(&heap, memory, 4 * MGC_GRANULE);
    mgc_heap_extend(&heap, sizeof memory - 4 * MGC_GRANULE);
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = mgc_heap_alloc(&heap, GRANULES * MGC_GRANULE);
        REQUIRE(blocks[i] && mgc_heap_alloc(&heap, 2 * MGC_GRANULE), "no room"); /* the second stays between two */
    }
    for (int i = 0; i < BLOCKS; i++)
        mgc_heap_free(&heap, blocks[i]);
    uint64_t last = heap.last;
    REQUIRE(mgc_heap_block(&heap, last)->size == LARGER && mgc_heap_block(&heap, last)->slot == MGC_SLOT_FREE, "%u",
            mgc_heap_block(&heap, last)->size);
    REQUIRE(mgc_heap_alloc(&heap, LARGER * MGC_GRANULE) == last, "the last block was not found");
    REQUIRE(mgc_heap_alloc(&heap, LARGER * MGC_GRANULE) == 0, "there is no other");
}

/* Adoption lays gaps as they are: a little more than one free block, and two that are too large to be joined. */
static void gaps_of_any_size_are_laid(void) {
    const uint64_t most = MGC_HEAP_MAX_BYTES, room = 5 * most;
    uint8_t *memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(memory != MAP_FAILED, "no address range");
    struct mgc_heap heap;
    mgc_heap_init(&heap, memory, MGC_PAGE);
    mgc_heap_block(&heap, MGC_PAGE + most + MGC_GRANULE)->size = 10; /* an entry's, behind the gap */
    mgc_heap_lay(&heap, most + MGC_GRANULE, MGC_SLOT_FREE);
    REQUIRE(mgc_heap_block(&heap, heap.end)->size == 10, "the entry was written over");
    mgc_heap_lay(&heap, 10 * MGC_GRANULE, 1);
    mgc_heap_lay(&heap, most, MGC_SLOT_FREE);
    uint64_t range = heap.end;
    mgc_heap_lay(&heap, 2 * most, MGC_SLOT_RANGE);
    mgc_heap_free(&heap, range);
    uint64_t blocks = 0;
    for (uint64_t at = heap.start; at; at = mgc_heap_next(&heap, at), blocks++)
        REQUIRE(mgc_heap_block(&heap, at)->size && blocks < 4, "a block that has no end");
    REQUIRE(blocks == 4, "%llu blocks", (unsigned long long)blocks);
    munmap(memory, room);
}

/* The heap against a map of what is allocated. */
static void the_heap_hands_out_what_it_has_once(void) {
    enum { BYTES = 1 << 20, COUNT = 500 };
    static _Alignas(MGC_LINE) uint8_t memory[BYTES];
    struct mgc_heap heap;
    struct {
        uint64_t offset, bytes;
    } live[COUNT] = {{0, 0}};
    uint64_t random = 3, used = 0;
    mgc_heap_init(&heap, memory, MGC_PAGE);
    mgc_heap_extend(&heap, BYTES / 2 - MGC_PAGE);
    for (int round = 0; round < 200000; round++) {
        uint64_t i = below(&random, COUNT);
        if (round == 100000)
            mgc_heap_extend(&heap, BYTES / 2);
        if (live[i].offset) {
            used -= mgc_block_bytes(mgc_heap_block(&heap, live[i].offset));
            for (uint64_t at = sizeof(struct mgc_block); at < live[i].bytes; at++)
                REQUIRE(memory[live[i].offset + at] == (uint8_t)i, "block %llu was handed out twice", (unsigned long long)i);
            mgc_heap_free(&heap, live[i].offset);
            live[i].offset = 0;
            continue;
        }
        live[i].bytes = sizeof(struct mgc_block) + below(&random, 1ull << (4 + below(&random, 11)));
        live[i].offset = mgc_heap_alloc(&heap, live[i].bytes);
        if (live[i].offset) {
            REQUIRE(live[i].offset % MGC_GRANULE == 0 && live[i].offset + live[i].bytes <= heap.end, "bounds");
            memset(memory + live[i].offset + sizeof(struct mgc_block), (int)i, live[i].bytes - sizeof(struct mgc_block));
            used += mgc_block_bytes(mgc_heap_block(&heap, live[i].offset));
        }
        REQUIRE(heap.used == used, "used");
    }
    for (int i = 0; i < COUNT; i++)
        if (live[i].offset)
            mgc_heap_free(&heap, live[i].offset);
    REQUIRE(heap.used == 0 && heap.last == heap.start, "free blocks were not joined");
}

/* ---- Rates ---- */

#define HALF_LIFE_STEP 1.00108362917190913 /* 2^(1 / MGC_RATE_HALF_LIFE) */

static double power(double base, uint64_t exponent) { /* without libm */
    double result = 1;
    for (; exponent; exponent >>= 1, base *= base)
        if (exponent & 1)
            result *= base;
    return result;
}

static double apart(double a, double b) { /* relative */
    double more = a > b ? a : b;
    return more > 0 ? (a > b ? a - b : b - a) / more : 0;
}

static void weights_are_powers_of_two(void) {
    _Static_assert(MGC_RATE_HALF_LIFE == 640, "HALF_LIFE_STEP");
    double before = 0;
    for (uint32_t time = 0; time < 300 * MGC_RATE_HALF_LIFE; time++) {
        double weight = mgc_rate_weight(time);
        REQUIRE(weight > before, "time %u", time);
        REQUIRE(apart(weight, power(HALF_LIFE_STEP, time)) < 2e-6, "time %u: %g", time, weight);
        before = weight;
    }
}

/* Against the sum itself, over days, with pauses of all lengths, and over the end of 32 bits of time. */
static void rates_are_what_they_are_said_to_be(void) {
    enum { EVENTS = 3000, LIVES = 40 };
    static struct {
        uint64_t time;
        double requests;
    } events[EVENTS];
    uint64_t random = 7;
    for (int life = 0; life < LIVES; life++) {
        uint64_t begun = life % 2 ? below(&random, 1ull << 32) : (1ull << 32) - below(&random, 20000), now = begun;
        struct mgc_rate rate = mgc_rate_begin((uint32_t)now);
        REQUIRE(mgc_rate_qps(&rate, (uint32_t)now) == 0, "a rate without requests");
        for (int n = 0; n < EVENTS; n++) {
            if (below(&random, 3) == 0)
                now += below(&random, 1ull << below(&random, n % 100 ? 12 : 22));
            events[n].time = now;
            events[n].requests = below(&random, 10) ? 1 : 1.5 * (double)below(&random, 2000);
            mgc_rate_count(&rate, events[n].requests, (uint32_t)now);
            uint64_t asked = now + (n % 3 ? 0 : below(&random, 4000)), age = asked - begun;
            double sum = 0, constant = MGC_RATE_HALF_LIFE / 0.6931471805599453 / MGC_RATE_SECOND;
            for (int past = n; past >= 0 && asked - events[past].time < 40 * MGC_RATE_HALF_LIFE; past--)
                sum += events[past].requests / power(HALF_LIFE_STEP, asked - events[past].time);
            if (age < MGC_RATE_YOUNGEST) { /* as many requests, in that much time */
                sum *= power(HALF_LIFE_STEP, age);
                age = MGC_RATE_YOUNGEST;
                sum /= power(HALF_LIFE_STEP, age);
            }
            double exact = sum / (constant * (1 - 1 / power(HALF_LIFE_STEP, age)));
            double got = mgc_rate_qps(&rate, (uint32_t)asked);
            REQUIRE(apart(got, exact) < 1e-4, "life %d, request %d, age %llu: %.9g, expected %.9g", life, n,
                    (unsigned long long)age, got, exact);
        }
    }
}

static void a_steady_rate_is_told_at_any_age(void) {
    for (uint32_t each = 1; each <= MGC_RATE_SECOND; each *= 4) { /* 16, 4 and 1 a second */
        struct mgc_rate rate = mgc_rate_begin(77);
        for (uint32_t time = each; time < 4 * 3600 * MGC_RATE_SECOND; time += each) {
            mgc_rate_count(&rate, 1, 77 + time);
            if (time >= MGC_RATE_YOUNGEST)
                REQUIRE(apart(mgc_rate_qps(&rate, 77 + time), (double)MGC_RATE_SECOND / each) < 0.06, "at %u: %g", time,
                        mgc_rate_qps(&rate, 77 + time));
        }
        double last = mgc_rate_qps(&rate, 77 + 4 * 3600 * MGC_RATE_SECOND);
        double half = mgc_rate_qps(&rate, 77 + 4 * 3600 * MGC_RATE_SECOND + MGC_RATE_HALF_LIFE);
        REQUIRE(apart(half, last / 2) < 1e-5, "%g after %g", half, last);
        REQUIRE(mgc_rate_qps(&rate, 77 + 60u * 86400 * MGC_RATE_SECOND) == 0, "after two months");
    }
}

static double rate_of(const struct mgc_arena *arena, uint64_t number) {
    uint8_t key[32];
    return mgc_arena_minute_qps(arena, key, make_key(number, key));
}

/* Requests of a key since it came, at the least age. */
static double requests_of(const struct mgc_arena *arena, uint64_t number) {
    double constant = MGC_RATE_HALF_LIFE / 0.6931471805599453 / MGC_RATE_SECOND;
    return rate_of(arena, number) * constant * (power(HALF_LIFE_STEP, MGC_RATE_YOUNGEST) - 1);
}

static void hit(struct mgc_arena *arena, struct mgc_region *region, uint64_t number, int times) {
    struct mgc_map map;
    struct mgc_hit found;
    uint8_t key[32];
    REQUIRE(mgc_map_attach(&map, control->base, arena->base, arena->header->size) == 0, "attach");
    for (; times > 0; times--) {
        REQUIRE(mgc_get(&map, region, 1, key, make_key(number, key), &found) == MGC_HIT, "a miss");
        mgc_unpin(region, 1);
    }
}

/* Whatever the LRU list makes of them, and whichever region they come from. */
static void every_touch_that_is_drained_is_counted(void) {
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    struct mgc_found found;
    uint8_t key[32];
    double qps;
    for (uint64_t number = 0; number < 3; number++)
        REQUIRE(put(arena, number, 1, 4, MGC_MAIN), "no room");
    for (int region = 0; region < 3; region++)
        hit(arena, region_of(control, region), 0, 50);
    hit(arena, region_of(control, 0), 1, 100);
    REQUIRE(rate_of(arena, 0) == 0, "counted before the drain");
    REQUIRE(mgc_arena_find(arena, key, make_key(0, key), &found), "a miss"); /* newer than its touches */
    REQUIRE(mgc_control_drain(control) == 250, "touches were lost");
    REQUIRE(apart(requests_of(arena, 0), 150) < 1e-5 && apart(requests_of(arena, 1), 100) < 1e-5, "%g, %g",
            requests_of(arena, 0), requests_of(arena, 1));
    for (int times = 1; times <= 5; times++) {
        REQUIRE(mgc_arena_serve(arena, key, make_key(2, key), &found, &qps), "a miss");
        REQUIRE(apart(requests_of(arena, 2), times) < 1e-5 && qps == mgc_rate_round(rate_of(arena, 2)), "%g", qps);
        REQUIRE(qps > 0 && apart(qps, rate_of(arena, 2)) <= 1.0 / 32, "%g", qps);
    }
    REQUIRE(!mgc_arena_serve(arena, key, make_key(3, key), &found, &qps) && rate_of(arena, 3) == 0, "a hit");
    require_sound(arena);
    close_arena(arena);
}

static void touches_that_were_lost_are_made_up_for(void) {
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    REQUIRE(put(arena, 0, 1, 4, MGC_MAIN) && put(arena, 1, 1, 4, MGC_MAIN), "no room");
    uint64_t lost = control->touches_lost;
    for (int times = 0; times < 2 * (int)MGC_TOUCHES; times++) /* half of it is lost */
        hit(arena, region_of(control, 0), times % 4 == 0, 1);
    hit(arena, region_of(control, 1), 0, 10); /* another ring's count for one each */
    mgc_control_drain(control);
    REQUIRE(control->touches_lost - lost >= MGC_TOUCHES, "nothing was lost");
    REQUIRE(apart(requests_of(arena, 0), 1.5 * MGC_TOUCHES + 10) < 0.01, "%g", requests_of(arena, 0));
    REQUIRE(apart(requests_of(arena, 1), 0.5 * MGC_TOUCHES) < 0.01, "%g", requests_of(arena, 1));
    close_arena(arena);
}

static void a_rate_is_its_keys_while_that_is_cached(void) {
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    control->now = 1000;
    REQUIRE(put(arena, 0, 1, 4, MGC_MAIN), "no room");
    hit(arena, region_of(control, 0), 0, 20);
    control->now += 200;
    mgc_control_drain(control);
    double before = rate_of(arena, 0);
    REQUIRE(before > 1, "%g", before);
    hit(arena, region_of(control, 0), 0, 5); /* of the first value: they are not of what is published when they are drained */
    REQUIRE(put(arena, 0, 2, 8, MGC_HOT) && rate_of(arena, 0) == before, "a new value: %g", rate_of(arena, 0));
    mgc_control_drain(control);
    REQUIRE(rate_of(arena, 0) == before, "a touch of a block that is gone");
    REQUIRE(remove_key(arena, 0) && rate_of(arena, 0) == 0, "removed");
    REQUIRE(put(arena, 1, 1, 4, MGC_MAIN) && rate_of(arena, 1) == 0, "another key in its slot: %g", rate_of(arena, 1));
    REQUIRE(put(arena, 0, 3, 4, MGC_MAIN) && rate_of(arena, 0) == 0, "the key again: %g", rate_of(arena, 0));
    control->now = 0;
    require_sound(arena);
    close_arena(arena);
}

/* ---- Drains for victims ---- */

enum { MILLISECOND = 1000000 };

static void drains_for_victims_take_a_tenth_of_the_time(void) {
    struct mgc_control drained = {0};
    uint64_t begun = 5ull << 32, now = begun, spent = 0;
    for (; now < begun + 100 * MGC_DRAINS_SPAN; now += MILLISECOND) /* of a millisecond each, whenever one may be */
        if (!mgc_drain_is_put_off(&drained, now)) {
            mgc_drain_took(&drained, MGC_TOUCHES, now, now + MILLISECOND);
            spent += MILLISECOND;
        }
    REQUIRE(spent >= 10 * MGC_DRAINS_SPAN && spent <= 10 * MGC_DRAINS_SPAN + 12 * MILLISECOND, "%llu ns",
            (unsigned long long)spent);
    for (; mgc_drain_is_put_off(&drained, now); now += MILLISECOND)
        ;
    mgc_drain_took(&drained, MGC_TOUCHES, now, now + 50 * MILLISECOND); /* paid in 500 ms, but for the last 100 */
    REQUIRE(mgc_drain_is_put_off(&drained, now + 399 * MILLISECOND), "after a long one");
    REQUIRE(!mgc_drain_is_put_off(&drained, now + 501 * MILLISECOND), "paid, and not due");
}

static void drains_that_take_little_are_never_put_off(void) {
    struct mgc_control drained = {0};
    for (uint64_t now = 1; now < 100 * MGC_DRAINS_SPAN; now += 10 * MILLISECOND) {
        REQUIRE(!mgc_drain_is_put_off(&drained, now), "at %llu", (unsigned long long)now);
        mgc_drain_took(&drained, 64 * MGC_TOUCHES, now, now + MILLISECOND - 1); /* a tenth of the time */
        mgc_drain_took(&drained, MGC_TOUCHES - 1, now, now + 9 * MILLISECOND); /* few touches: others had the processor */
    }
}

/* Those that a coordinator does regularly go on, and what they take does not add up. */
static void drains_that_are_never_put_off_are_not_owed_for_ever(void) {
    struct mgc_control drained = {0};
    uint64_t now = 1;
    for (int tick = 0; tick < 10000; tick++, now += 250 * MILLISECOND)
        mgc_drain_took(&drained, 64 * MGC_TOUCHES, now, now + 100 * MILLISECOND);
    REQUIRE(mgc_drain_is_put_off(&drained, now), "drains were 40 %% of the time");
    REQUIRE(!mgc_drain_is_put_off(&drained, now + 1000 * MILLISECOND), "a second later");
}

/* Entries of one size, which is more than the share of the budget that is evicted ahead: so one goes for one that comes. */
static void put_even(struct mgc_arena *arena, uint64_t number) {
    REQUIRE(put(arena, 25 * number, 1, 12, MGC_MAIN), "no room");
}

static void hit_even(struct mgc_arena *arena, int worker, uint64_t number, int times) {
    hit(arena, region_of(control, worker), 25 * number, times);
}

static int is_cached(struct mgc_arena *arena, uint64_t number) { /* without a touch if it is not */
    struct mgc_map map;
    struct mgc_hit found;
    uint8_t key[32];
    REQUIRE(mgc_map_attach(&map, control->base, arena->base, arena->header->size) == 0, "attach");
    if (mgc_get(&map, region_of(control, 0), 1, key, make_key(25 * number, key), &found) != MGC_HIT)
        return 0;
    mgc_unpin(region_of(control, 0), 1);
    return 1;
}

/* An arena that holds keys 0 to `entries` - 1, oldest first, and has no room for another. */
static struct mgc_arena *full_arena(uint64_t *entries) {
    struct mgc_arena *arena = open_arena(control, 1 << 16, 0);
    uint64_t fit = 0;
    while (arena->header->lists[MGC_MAIN].evictions == 0)
        put_even(arena, fit++);
    *entries = fit - 1;
    for (uint64_t number = 0; number < *entries; number++)
        put_even(arena, number);
    return arena;
}

/* Though drains are most of what is done here. */
static void with_few_workers_each_victim_is_the_least_recently_used(void) {
    enum { WORKERS = 4, ROUNDS = 2000, MOST = 1000 };
    uint64_t entries, cached[MOST], random = 11;
    struct mgc_arena *arena = full_arena(&entries);
    REQUIRE(entries > 100 && entries < MOST, "%llu entries", (unsigned long long)entries);
    for (uint64_t i = 0; i < entries; i++)
        cached[i] = i;
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint64_t victim = below(&random, entries);
        for (uint64_t i = 0; i < entries; i++)
            if (i != victim)
                hit_even(arena, (int)(i % WORKERS), cached[i], 1);
        put_even(arena, entries + round);
        REQUIRE(!is_cached(arena, cached[victim]), "round %llu: another went", (unsigned long long)round);
        cached[victim] = entries + round;
        /* A touch's time is rounded, and later than it was where hits follow each other faster: the next round's are to
         * come behind all of this one's. */
        for (uint64_t begun = mgc_ticks(); mgc_ticks() - begun < (entries + 1) << 8;)
            ;
    }
    require_sound(arena);
    close_arena(arena);
}

static void a_drain_that_is_put_off_comes_later(void) {
    uint64_t entries;
    struct mgc_arena *arena = full_arena(&entries);
    hit_even(arena, 1, 0, 1);
    control->drains_paid = mgc_nanoseconds() + 3600ull * 1000 * MILLISECOND;
    put_even(arena, entries);
    REQUIRE(!is_cached(arena, 0), "the hit was drained");
    hit_even(arena, 1, 1, 1);
    mgc_control_drain(control); /* as the coordinator does regularly */
    put_even(arena, entries + 1);
    REQUIRE(is_cached(arena, 1) && !is_cached(arena, 2), "not drained");
    hit_even(arena, 1, 3, 1);
    control->drains_paid = mgc_nanoseconds();
    put_even(arena, entries + 2);
    REQUIRE(is_cached(arena, 3) && !is_cached(arena, 4), "not drained");
    require_sound(arena);
    close_arena(arena);
}

/* Real drains, of as many full rings as 64 busy workers have. */
static void drains_are_put_off_beside_many_busy_workers_and_come_again(void) {
    enum { WORKERS = 64 };
    uint64_t entries, number;
    struct mgc_arena *arena = full_arena(&entries);
    REQUIRE(mgc_control_spare_regions(control, WORKERS) >= WORKERS, "no memory");
    struct mgc_region *last = region_of(control, WORKERS - 1);
    uint64_t *drained = &control->tails[WORKERS - 1];
    control->drains_paid = 0;
    for (number = entries; *drained == last->touch_head; number++) { /* while each put drains */
        REQUIRE(number < entries + 1000, "drains are all that is done");
        for (int worker = 0; worker < WORKERS; worker++)
            hit_even(arena, worker, number - 1, MGC_TOUCHES);
        put_even(arena, number);
    }
    uint64_t hit_at = last->touch_head, begun = mgc_nanoseconds();
    for (; *drained != hit_at; number++) { /* no drain but for victims: until one is due */
        REQUIRE(mgc_nanoseconds() < begun + 60000ull * MILLISECOND, "no drain for a minute");
        put_even(arena, number);
    }
    require_sound(arena);
    close_arena(arena);
}

static uint64_t boot_time(void) {
    struct timespec time;
    clock_gettime(CLOCK_BOOTTIME, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Whoever reads an age by it takes nothing for dead that the coordinator does not. */
static void the_coarse_clock_is_not_ahead(void) {
    struct mgc_control_header *header = (struct mgc_control_header *)(void *)control->base;
    for (uint64_t begun = boot_time(), now = begun, last = 0; now < begun + 250 * MILLISECOND; now = boot_time()) {
        uint64_t coarse = mgc_host_now();
        REQUIRE(coarse >= last, "it went back");
        REQUIRE(coarse <= boot_time(), "it is ahead");
        REQUIRE(coarse + 1000 * MILLISECOND > now, "it is a second behind");
        last = coarse;
    }
    uint64_t before = mgc_now(header);
    atomic_store(&header->clock_offset, atomic_load(&header->clock_offset) + (1ull << 62));
    REQUIRE(mgc_now(header) - before - (1ull << 62) < 60000ull * MILLISECOND, "a change of the offset does not show");
}

int main(void) {
    control = open_control();
    the_coarse_clock_is_not_ahead();
    hits_in_immediate_succession_keep_their_order();
    chosen_keys_do_not_grow_the_index();
    constants_in_keys_do_not_collide();
    the_last_block_is_found_behind_others();
    gaps_of_any_size_are_laid();
    the_heap_hands_out_what_it_has_once();
    weights_are_powers_of_two();
    rates_are_what_they_are_said_to_be();
    a_steady_rate_is_told_at_any_age();
    every_touch_that_is_drained_is_counted();
    touches_that_were_lost_are_made_up_for();
    a_rate_is_its_keys_while_that_is_cached();
    drains_for_victims_take_a_tenth_of_the_time();
    drains_that_take_little_are_never_put_off();
    drains_that_are_never_put_off_are_not_owed_for_ever();
    with_few_workers_each_victim_is_the_least_recently_used();
    a_drain_that_is_put_off_comes_later();
    drains_are_put_off_beside_many_busy_workers_and_come_again();
    close_control(control);
    return 0;
}
