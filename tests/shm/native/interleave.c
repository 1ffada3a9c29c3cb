/* One side of the pin protocol is stopped before each of its atomic operations in turn, and there the other side does
 * whole operations. All in one thread: what fails, fails every time. (Memory order is for stress.c to try.)
 *
 * The core is part of this translation unit, so that stop_here() stands before every atomic operation of it.
 */
#define _GNU_SOURCE
#include <stdatomic.h>

static void stop_here(void);

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_thread_fence
#define atomic_load_explicit(place, order)                                                                             \
    __extension__({                                                                                                    \
        __typeof__((void)0, *(place)) loaded_;                                                                         \
        stop_here();                                                                                                        \
        __atomic_load((place), &loaded_, order);                                                                       \
        loaded_;                                                                                                       \
    })
#define atomic_store_explicit(place, value, order)                                                                     \
    __extension__({                                                                                                    \
        __typeof__((void)0, *(place)) stored_ = (value);                                                               \
        stop_here();                                                                                                        \
        __atomic_store((place), &stored_, order);                                                                      \
    })
#define atomic_thread_fence(order) (stop_here(), __atomic_thread_fence(order))

#include "world.h"

#include "arena.c"
#include "check.c"
#include "control.c"
#include "evict.c"
#include "heap.c"
#include "index.c"
#include "lru.c"
#include "pins.c"
#include "reclaim.c"
#include "reader.c"
#include "space.c"
#include "touches.c"
#include "wheel.c"

#define BUDGET (40u << 10)
#define FEW 20u
#define FULL_INDEX 383u /* entries with the next of which the index grows */
#define PLACES 200u     /* of one operation in which it is stopped; longer ones repeat themselves */
#define TARGET 1000u /* the key that all of this is about */
#define WORDS 4u
#define VIEWS 8u
#define LONG_AGO (3600ll * 1000000000) /* ns */

static struct {
    struct mgc_control *control;
    uint8_t *memory; /* of the arena */
    int fd;
    struct mgc_arena arena;
    struct mgc_map map;
    uint64_t version;
    int reader, parent, child; /* regions */
    struct view {
        struct mgc_region *region;
        uint32_t pin;
        struct mgc_hit hit;
        uint64_t version;
    } views[VIEWS];
    uint32_t view_count;
    struct mgc_reservation unfilled;
    int has_unfilled;
} world;

/* ---- What the two sides do ---- */

static void hold_hit(struct mgc_region *region, uint32_t pin, const struct mgc_hit *hit) {
    const struct mgc_block *block = mgc_pinned_block(region, pin, world.memory);
    REQUIRE(!(block->flags & MGC_AGED) || mgc_ages_of(block)->dead_at + LONG_AGO / 2 > mgc_arena_clock(&world.arena),
            "a value that was dead before");
    world.views[world.view_count++] = (struct view){
        .region = region, .pin = pin, .hit = *hit, .version = verify_value(hit, TARGET, "when found")};
}

static void get_and_hold_with(int number, uint32_t pin) {
    struct mgc_region *region = region_of(world.control, number);
    struct mgc_hit hit;
    uint8_t key[32];
    if (mgc_get(&world.map, region, pin, key, make_key(TARGET, key), &hit) == MGC_HIT)
        hold_hit(region, pin, &hit);
}

static void get_many_and_hold(void) {
    const uint64_t keys[] = {0, TARGET, 5000, TARGET}; /* one that is not there, too */
    struct mgc_region *region = region_of(world.control, world.reader);
    struct mgc_look looks[4];
    uint8_t bytes[4][32];
    for (uint32_t i = 0; i < 4; i++)
        looks[i] = (struct mgc_look){.key = bytes[i], .key_length = make_key(keys[i], bytes[i]), .pin = 10 + i};
    mgc_get_many(&world.map, region, looks, 4);
    for (uint32_t i = 0; i < 4; i++)
        if (looks[i].found == MGC_HIT) {
            if (keys[i] == TARGET)
                hold_hit(region, looks[i].pin, &looks[i].hit);
            else
                mgc_unpin(region, looks[i].pin);
        }
}

static void get_and_hold(void) { get_and_hold_with(world.reader, 7); }

static void release_all(void) {
    while (world.view_count) {
        struct view *view = &world.views[--world.view_count];
        REQUIRE(verify_value(&view->hit, TARGET, "when released") == view->version, "another version");
        mgc_unpin(view->region, view->pin);
    }
}

static void get_and_release(void) {
    get_and_hold();
    release_all();
}

/* Views of the parent's region go to the child's, and the parent lets go of them: what the hooks around a fork do. */
static void fork_and_release_in_parent(void) {
    struct mgc_region *parent = region_of(world.control, world.parent), *child = region_of(world.control, world.child);
    mgc_region_copy_pins(child, parent);
    for (uint32_t i = 0; i < world.view_count; i++)
        if (world.views[i].region == parent) {
            world.views[i].region = child;
            mgc_unpin(parent, world.views[i].pin);
        }
}

static void put_fillers(uint64_t from, uint64_t to) {
    for (uint64_t key = from; key < to; key++)
        REQUIRE(put(&world.arena, key, ++world.version, WORDS, MGC_MAIN), "no room for a filler");
}

static void replace(void) { REQUIRE(put(&world.arena, TARGET, ++world.version, WORDS, MGC_MAIN), "no room"); }

static void remove_target(void) { remove_key(&world.arena, TARGET); }

/* Free blocks are written all over. */
static void reuse(void) {
    put_fillers(2000, 2004);
    for (uint64_t filler = 2000; filler < 2004; filler++)
        remove_key(&world.arena, filler);
}

static void replace_and_reuse(void) {
    replace();
    reuse();
}

static void remove_and_reuse(void) {
    remove_target();
    reuse();
}

static void remove_and_put_again(void) {
    remove_target();
    reuse();
    replace();
}

/* Whoever has looked at the ages of what lay there before believes that it lives. */
static void remove_and_put_a_dead_one(void) {
    const struct mgc_traits traits = {.flags = MGC_AGED, .fresh = -LONG_AGO, .dead = -LONG_AGO};
    struct mgc_reservation reservation;
    uint8_t key[32];
    remove_target();
    reuse();
    if (mgc_arena_reserve(&world.arena, key, make_key(TARGET, key), VALUE_WORDS_MIN * 8, &traits, &reservation) != 0)
        return;
    fill_value(reservation.value, TARGET, ++world.version, VALUE_WORDS_MIN);
    mgc_arena_publish(&world.arena, &reservation);
}

/* Whoever still believes in the old word finds the right key in its block, and a value that is not there yet. */
static void remove_and_reserve_again(void) {
    remove_target();
    reuse();
    world.has_unfilled = reserve(&world.arena, TARGET, WORDS * 8, MGC_MAIN, &world.unfilled);
}

static void clear_and_reuse(void) {
    int more;
    mgc_arena_clear(&world.arena);
    reuse(); /* other blocks, for the cleared ones are not reclaimed yet */
    mgc_arena_reclaim(&world.arena, UINT64_MAX, &more);
    reuse();
}

static void clear_and_put_again(void) {
    clear_and_reuse();
    replace();
}

static void evict_all(void) {
    REQUIRE(put(&world.arena, 3000, ++world.version, BUDGET / 40, MGC_MAIN), "no room for a large value");
    for (uint64_t key = 3001; key < 3006; key++)
        put(&world.arena, key, ++world.version, BUDGET / 40, MGC_MAIN);
    reuse();
}

static void grow_index(void) {
    uint64_t descriptor = world.arena.descriptor;
    put_fillers(FULL_INDEX - 2, FULL_INDEX + 8);
    REQUIRE(world.arena.descriptor != descriptor, "the index did not grow");
}

static void grow_and_put_again(void) {
    grow_index();
    remove_and_put_again();
}

static void grow_and_reserve_again(void) {
    grow_index();
    remove_and_reserve_again();
}

static void retire(void) {
    mgc_arena_retire(&world.arena);
    remove_and_reserve_again();
}

/* ---- All pairs, at all steps ---- */

struct operation {
    const char *name;
    void (*run)(void);
    uint64_t fillers; /* entries that it wants to find beside the target */
};
#define OPERATION(function, fillers) {#function, function, fillers}

static const struct operation reading[] = {
    OPERATION(get_and_hold, FEW),
    OPERATION(get_and_release, FEW),
    OPERATION(get_many_and_hold, FEW),
    OPERATION(release_all, FEW),
    OPERATION(fork_and_release_in_parent, FEW),
};

static const struct operation writing[] = {
    OPERATION(replace, FEW),
    OPERATION(replace_and_reuse, FEW),
    OPERATION(remove_and_reuse, FEW),
    OPERATION(remove_and_put_again, FEW),
    OPERATION(remove_and_reserve_again, FEW),
    OPERATION(remove_and_put_a_dead_one, FEW),
    OPERATION(clear_and_reuse, FEW),
    OPERATION(clear_and_put_again, FEW),
    OPERATION(evict_all, FEW),
    OPERATION(grow_index, FULL_INDEX - 2),
    OPERATION(grow_and_put_again, FULL_INDEX - 2),
    OPERATION(grow_and_reserve_again, FULL_INDEX - 2),
    OPERATION(retire, FEW),
};

static uint64_t steps_left; /* 0: none is waited for */
static uint64_t steps;
static const struct operation *interruption;

static void stop_here(void) {
    steps++;
    if (steps_left && --steps_left == 0)
        interruption->run();
}

static void begin(uint64_t fillers, int held) {
    format_arena(&world.arena, world.memory, world.fd, world.control, BUDGET, 1);
    REQUIRE(mgc_map_attach(&world.map, world.control->base, world.memory, world.arena.header->size) == 0, "attach");
    replace();
    if (held) /* a version that the operations do not find any more */
        get_and_hold_with(world.parent, 3);
    replace();
    put_fillers(0, fillers);
}

static void end(void) {
    if (world.has_unfilled) {
        fill_value(world.unfilled.value, TARGET, ++world.version, WORDS);
        mgc_arena_publish(&world.arena, &world.unfilled);
        world.has_unfilled = 0;
    }
    for (int round = 0; round < 3; round++)
        evict_all();
    release_all();
    mgc_arena_sweep(&world.arena);
    require_sound(&world.arena);
    REQUIRE(world.arena.limbo.count == 0, "%zu blocks in limbo that nobody has pinned", world.arena.limbo.count);
    replace();
    /* Nothing of what there was when an era ended is found by a get that begins later. */
    atomic_store(&world.arena.header->era, atomic_load(&world.arena.header->era) + 1);
    if (atomic_load(&world.arena.header->index) != 0) {
        get_and_hold();
        get_many_and_hold();
    }
    REQUIRE(world.view_count == 0, "a value that was cleared");
    erase_arena(&world.arena);
    mgc_arena_close(&world.arena);
}

static uint64_t run(const struct operation *first, const struct operation *second, uint64_t at, int held) {
    begin(first->fillers > second->fillers ? first->fillers : second->fillers, held);
    snprintf(doing, sizeof doing, "%s stopped in place %llu by %s%s", first->name, (unsigned long long)at, second->name,
             held ? ", with a view" : "");
    steps = 0;
    steps_left = at;
    interruption = second;
    first->run();
    steps_left = 0;
    uint64_t taken = steps;
    end();
    return taken;
}

static uint64_t run_all(const struct operation *stopped, size_t stopped_count, const struct operation *others,
                        size_t other_count) {
    uint64_t runs = 0;
    for (size_t i = 0; i < stopped_count; i++)
        for (size_t j = 0; j < other_count; j++)
            for (int held = 0; held < 2; held++) {
                uint64_t places = run(&stopped[i], &others[j], 0, held);
                for (uint64_t at = 1; at <= places; at += 1 + places / PLACES, runs++)
                    run(&stopped[i], &others[j], at, held);
            }
    return runs;
}

int main(void) {
    size_t readings = sizeof reading / sizeof *reading, writings = sizeof writing / sizeof *writing;
    world.control = open_control();
    world.memory = map_memfd("arena", mgc_arena_size(BUDGET), &world.fd);
    world.parent = 0, world.reader = 1, world.child = 2; /* scans ascend: a child's region is above its parent's */
    uint64_t stopped_readers = run_all(reading, readings, writing, writings);
    uint64_t stopped_writers = run_all(writing, writings, reading, readings);
    munmap(world.memory, mgc_arena_size(BUDGET));
    close(world.fd);
    close_control(world.control);
    printf("readers stopped in %llu places, writers in %llu\n", (unsigned long long)stopped_readers,
           (unsigned long long)stopped_writers);
    return stopped_readers && stopped_writers ? 0 : 1;
}
