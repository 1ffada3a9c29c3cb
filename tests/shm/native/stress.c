/* One writer and several readers at full speed over one mapping, for a ThreadSanitizer, an AddressSanitizer or none.
 *
 *     stress SECONDS SEED
 *
 * Readers get keys, verify every word of what they find, hold some of it for a while and verify it again. They die with
 * pins set, and move to a higher region with their pins as a fork does. The arena is small enough to evict all the time,
 * and is made anew all the time, so that its index has to grow again.
 *
 * Regions and arenas are used through one address range for all threads, or ThreadSanitizer would not see that they share
 * them; a claim's own mapping only keeps the region's lock.
 */
#include "world.h"

#include <pthread.h>
#include <time.h>

#define READERS 3
#define BUDGET (192u << 10)
#define KEYS 6000u
#define HOT_KEYS 4u /* replaced and read so often that both sides meet in the middle of it */
#define HELD 64u
#define ARENAS 4096u
#define INSERTS_PER_ARENA 8000u
#define OPEN_RESERVATIONS 4u

struct generation { /* an arena, until the last reader has let go of it */
    struct mgc_arena *arena;
    struct mgc_map map;
    _Atomic uint32_t users;
};

static struct mgc_control *control;
static struct generation generations[ARENAS];
static _Atomic uint32_t current; /* generation that readers look in */
static _Atomic int stopping;
static _Atomic uint64_t deaths;
static uint64_t seed;

struct held {
    struct mgc_hit hit;
    uint64_t key, version;
    uint32_t pin, until; /* the reader's step in which it is released */
    uint32_t generation;
};

struct reader {
    pthread_t thread;
    uint64_t random;
    uint32_t generation;
    int number;
    struct mgc_region *region, *lock; /* the lock's mapping */
    struct held held[HELD];
    uint32_t held_count, step;
    uint64_t gets, hits, held_hits, forks;
};

/* ---- Readers ---- */

static int claim_above(int above, struct mgc_region **lock) {
    const struct mgc_control_header *header = (const struct mgc_control_header *)(const void *)control->base;
    int number;
    while ((number = mgc_region_claim(control->fd, header, above, lock)) == MGC_NO_REGION && !atomic_load(&stopping))
        sched_yield(); /* until the writer has freed some, or made more */
    return number;
}

/* Attaches to the current generation; the writer does not unmap what has users. */
static void use_current(struct reader *r) {
    for (;;) {
        uint32_t generation = atomic_load(&current);
        atomic_fetch_add(&generations[generation].users, 1);
        if (atomic_load(&current) == generation) {
            r->generation = generation;
            return;
        }
        atomic_fetch_sub(&generations[generation].users, 1);
    }
}

static void stop_using(uint32_t generation) { atomic_fetch_sub(&generations[generation].users, 1); }

static void release(struct reader *r, uint32_t i) {
    struct held *held = &r->held[i];
    REQUIRE(verify_value(&held->hit, held->key, "when released") == held->version, "key %llu: another version",
            (unsigned long long)held->key);
    mgc_unpin(r->region, held->pin);
    stop_using(held->generation);
    *held = r->held[--r->held_count];
}

static uint32_t free_pin(const struct reader *r) {
    for (uint32_t pin = 1;; pin++) {
        uint32_t i = 0;
        while (i < r->held_count && r->held[i].pin != pin)
            i++;
        if (i == r->held_count)
            return pin;
    }
}

static void get(struct reader *r) {
    uint64_t key = below(&r->random, 4) ? below(&r->random, HOT_KEYS) : below(&r->random, KEYS);
    uint32_t pin = free_pin(r);
    uint8_t bytes[32];
    struct mgc_hit hit;
    const struct mgc_map *map = &generations[r->generation].map;
    int outcome = mgc_get(map, r->region, pin, bytes, make_key(key, bytes), &hit);
    r->gets++;
    if (outcome == MGC_DETACHED) {
        stop_using(r->generation);
        use_current(r);
        return;
    }
    if (outcome == MGC_MISS)
        return;
    r->hits++;
    uint64_t version = verify_value(&hit, key, "when found");
    if (r->held_count == HELD || below(&r->random, 8)) {
        mgc_unpin(r->region, pin);
        return;
    }
    r->held_hits++;
    atomic_fetch_add(&generations[r->generation].users, 1);
    r->held[r->held_count++] = (struct held){.hit = hit,
                                             .key = key,
                                             .version = version,
                                             .pin = pin,
                                             .until = r->step + (uint32_t)below(&r->random, 2000),
                                             .generation = r->generation};
}

/* Its pins stay set, as those of a killed process do; the region's lock goes. */
static void die(struct reader *r) {
    for (uint32_t i = 0; i < r->held_count; i++) {
        verify_value(&r->held[i].hit, r->held[i].key, "at death");
        stop_using(r->held[i].generation);
    }
    r->held_count = 0;
    atomic_fetch_add_explicit(&deaths, 1, memory_order_release); /* before the lock goes; with reap() */
    mgc_region_unmap(r->lock);
    r->region = NULL;
}

static void live_in(struct reader *r, int number, struct mgc_region *lock) {
    r->number = number;
    r->lock = lock;
    r->region = region_of(control, number);
}

/* What the hooks around a fork do, with the child going on in this thread. */
static void move_up(struct reader *r) {
    const struct mgc_control_header *header = (const struct mgc_control_header *)(const void *)control->base;
    struct mgc_region *lock;
    int number = mgc_region_claim(control->fd, header, r->number, &lock);
    if (number < 0)
        return;
    mgc_region_copy_pins(region_of(control, number), r->region);
    for (uint32_t i = 0; i < r->held_count; i++)
        mgc_unpin(r->region, r->held[i].pin);
    mgc_region_unmap(r->lock);
    live_in(r, number, lock);
    r->forks++;
}

static void *read_all_the_time(void *argument) {
    struct reader *r = argument;
    use_current(r);
    while (!atomic_load_explicit(&stopping, memory_order_relaxed)) {
        if (!r->region) {
            struct mgc_region *lock;
            int number = claim_above(-1, &lock);
            if (number < 0)
                break;
            live_in(r, number, lock);
        }
        r->step++;
        get(r);
        for (uint32_t i = r->held_count; i-- > 0;)
            if ((int32_t)(r->held[i].until - r->step) <= 0)
                release(r, i);
        if (below(&r->random, 4000) == 0)
            die(r);
        else if (below(&r->random, 2000) == 0)
            move_up(r);
    }
    while (r->held_count)
        release(r, 0);
    if (r->region)
        mgc_region_unmap(r->lock);
    stop_using(r->generation);
    return NULL;
}

/* ---- The writer ---- */

static struct {
    uint64_t random, version, inserts, refused, growths, evictions;
    uint32_t oldest; /* generation that is not unmapped yet */
} writer;

/* Every other arena has small values alone, of which there is room for so many that its index grows several times. */
static uint64_t random_words(const struct mgc_arena *arena) {
    if (arena->header->incarnation % 2)
        return VALUE_WORDS_MIN + below(&writer.random, 2);
    return VALUE_WORDS_MIN + below(&writer.random, below(&writer.random, 16) ? 12 : 2000); /* up to 16 KB */
}

static uint64_t random_key(void) {
    return below(&writer.random, 2) ? below(&writer.random, HOT_KEYS) : below(&writer.random, KEYS);
}

/* What orders a dead reader's last reads before the reuse of what it had pinned is the file lock, which a ThreadSanitizer
 * knows nothing of: it sees the same order in the number of deaths. */
static void reap(void) {
    mgc_control_reap(control);
    (void)atomic_load_explicit(&deaths, memory_order_acquire);
}

/* Ages of some ms: entries are stale, dead and gone while they are read. */
static int put_some(struct mgc_arena *arena, uint64_t key, uint64_t words) {
    struct mgc_traits traits = {.flags = below(&writer.random, 8) ? MGC_MAIN : MGC_HOT};
    if (below(&writer.random, 4) == 0) {
        traits.flags |= MGC_AGED | (below(&writer.random, 2) ? MGC_COPY : 0);
        traits.fresh = (int64_t)below(&writer.random, 20000000);
        traits.dead = (int64_t)below(&writer.random, 40000000);
    }
    return put_with(arena, key, ++writer.version, words, &traits);
}

static void change_some(struct mgc_arena *arena) {
    uint8_t bytes[32];
    size_t length = make_key(random_key(), bytes);
    int more;
    switch (below(&writer.random, 64)) {
    case 0:
        mgc_arena_clear(arena);
        break;
    case 1:
        mgc_arena_reclaim(arena, below(&writer.random, 1000), &more);
        break;
    case 2:
        mgc_arena_revive(arena, bytes, length, 1000000);
        break;
    case 3:
        mgc_arena_put_off(arena, bytes, length, 1000000);
        break;
    default:
        mgc_arena_touch(arena, bytes, length, (int64_t)below(&writer.random, 20000000), 40000000);
    }
}

static void insert_many(struct mgc_arena *arena) {
    struct {
        struct mgc_reservation reservation;
        uint64_t key, version, words;
    } open[OPEN_RESERVATIONS];
    uint32_t open_count = 0;
    for (uint32_t n = 0; n < INSERTS_PER_ARENA && !atomic_load_explicit(&stopping, memory_order_relaxed); n++) {
        uint64_t key = random_key(), words = key < HOT_KEYS ? 8 : random_words(arena), descriptor = arena->descriptor;
        if (below(&writer.random, 16) == 0) {
            remove_key(arena, key);
        } else if (below(&writer.random, 32) == 0) {
            change_some(arena);
        } else if (open_count < OPEN_RESERVATIONS && below(&writer.random, 16) == 0) {
            if (reserve(arena, key, words * 8, MGC_HOT, &open[open_count].reservation)) {
                open[open_count].key = key;
                open[open_count].version = ++writer.version;
                open[open_count++].words = words;
            }
        } else if (put_some(arena, key, words)) {
            writer.inserts++;
        } else {
            writer.refused++;
        }
        if (open_count && below(&writer.random, 8) == 0) {
            open_count--;
            if (below(&writer.random, 2)) {
                fill_value(open[open_count].reservation.value, open[open_count].key, open[open_count].version,
                           open[open_count].words);
                mgc_arena_publish(arena, &open[open_count].reservation);
            } else {
                mgc_arena_abandon(arena, &open[open_count].reservation);
            }
        }
        writer.growths += arena->descriptor != descriptor;
        if (n % 256 == 0) {
            reap();
            mgc_control_spare_regions(control, 8);
        }
        if (n % 64 == 0)
            mgc_control_drain(control);
    }
    while (open_count)
        mgc_arena_abandon(arena, &open[--open_count].reservation);
}

static void open_generation(uint32_t number) {
    struct generation *generation = &generations[number];
    generation->arena = open_arena(control, BUDGET, number);
    const struct mgc_arena *arena = generation->arena;
    REQUIRE(mgc_map_attach(&generation->map, control->base, arena->base, arena->header->size) == 0, "attach");
    atomic_store(&current, number);
}

static void end_generation(uint32_t number) {
    struct mgc_arena *arena = generations[number].arena;
    for (uint32_t list = 0; list < 2; list++)
        writer.evictions += atomic_load(&arena->header->lists[list].evictions);
    require_sound(arena);
    mgc_arena_retire(arena);
}

/* Where a loaded machine and a sanitizer leave little of the time, some more is added. */
static int tried_everything(void) { return writer.evictions && writer.growths; }

/* Unmaps arenas that nobody uses any more. Readers' last use of one comes before their atomic step out of it. */
static void unmap_unused(uint32_t up_to) {
    for (; writer.oldest < up_to && atomic_load(&generations[writer.oldest].users) == 0; writer.oldest++)
        close_arena(generations[writer.oldest].arena);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void write_for(double seconds) {
    double end = now() + seconds;
    uint32_t number = 0;
    for (; number < ARENAS - 1 && (now() < end || (!tried_everything() && now() < end + 60)); number++) {
        insert_many(generations[number].arena);
        end_generation(number);
        open_generation(number + 1);
        unmap_unused(number);
    }
}

int main(int count, char **arguments) {
    static struct reader readers[READERS];
    double seconds = count > 1 ? atof(arguments[1]) : 5;
    seed = count > 2 ? strtoull(arguments[2], NULL, 0) : 1;
    writer.random = seed;
    control = open_control();
    open_generation(0);
    for (uint32_t i = 0; i < READERS; i++) {
        readers[i].random = seed + 1 + i;
        REQUIRE(pthread_create(&readers[i].thread, NULL, read_all_the_time, &readers[i]) == 0, "no thread");
    }
    write_for(seconds);
    atomic_store(&stopping, 1);
    struct reader sum = {0};
    for (uint32_t i = 0; i < READERS; i++) {
        pthread_join(readers[i].thread, NULL);
        sum.gets += readers[i].gets;
        sum.hits += readers[i].hits;
        sum.held_hits += readers[i].held_hits;
        sum.forks += readers[i].forks;
    }
    uint32_t last = atomic_load(&current);
    reap();
    mgc_control_scan(control);
    REQUIRE(control->pin_count == 0, "%zu pins of nobody", control->pin_count);
    unmap_unused(last);
    REQUIRE(writer.oldest == last, "generation %u of %u is still in use", writer.oldest, last);
    mgc_arena_sweep(generations[last].arena);
    require_sound(generations[last].arena);
    REQUIRE(generations[last].arena->limbo.count == 0, "blocks in limbo that nobody has pinned");
    close_arena(generations[last].arena);
    close_control(control);
    printf("%llu gets, %llu hits, %llu held; %llu deaths, %llu forks; %llu inserts, %llu refused, %llu evictions, %llu "
           "growths, %u arenas\n",
           (unsigned long long)sum.gets, (unsigned long long)sum.hits, (unsigned long long)sum.held_hits,
           (unsigned long long)deaths, (unsigned long long)sum.forks, (unsigned long long)writer.inserts,
           (unsigned long long)writer.refused, (unsigned long long)writer.evictions, (unsigned long long)writer.growths,
           last + 1);
    REQUIRE(sum.hits && sum.held_hits && deaths && sum.forks && tried_everything(), "something was not tried");
    return 0;
}
