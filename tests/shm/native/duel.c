/* One reader and one writer of one key, made for the few nanoseconds in which get()'s fence matters: without it, this
 * fails within seconds.
 *
 *     duel SECONDS
 *
 * The interleaving: the reader's store of its pin waits in its processor's store buffer; its second load sees the word
 * still there; the writer clears the word, scans, sees no pin, and reuses the block under the reader. The window is as
 * long as the store takes, so both sides write to some lines in common just before: stores leave the buffer in order.
 */
#include "world.h"

#include <pthread.h>
#include <time.h>

#define VIEWS 16u
#define LINES 8u
#define WORDS 4u

static struct mgc_control *control;
static struct mgc_arena *arena;
static struct mgc_map map;
static _Atomic int stopping;
static uint64_t gets;

static struct {
    _Alignas(MGC_LINE) _Atomic uint64_t word;
} contended[LINES];

static void contend(uint64_t n) {
    for (uint32_t i = 0; i < LINES; i++)
        atomic_store_explicit(&contended[i].word, n, memory_order_relaxed);
}

static void *read_all_the_time(void *argument) {
    struct mgc_region *region = argument;
    struct {
        struct mgc_hit hit;
        uint64_t version;
        uint32_t pin;
    } views[VIEWS] = {{.pin = 0}};
    uint8_t key[32];
    size_t length = make_key(0, key);
    for (uint32_t i = 0; !atomic_load_explicit(&stopping, memory_order_relaxed); i = (i + 1) % VIEWS) {
        uint32_t pin = (i + 1) * MGC_LINE / sizeof(uint64_t); /* in a line of its own */
        if (views[i].pin) { /* held while the writer replaced it several times */
            REQUIRE(verify_value(&views[i].hit, 0, "when released") == views[i].version, "another version");
            mgc_unpin(region, pin);
        }
        contend(gets++);
        views[i].pin = mgc_get(&map, region, pin, key, length, &views[i].hit) == MGC_HIT ? pin : 0;
        if (views[i].pin)
            views[i].version = verify_value(&views[i].hit, 0, "when found");
    }
    for (uint32_t i = 0; i < VIEWS; i++)
        if (views[i].pin)
            mgc_unpin(region, views[i].pin);
    return NULL;
}

int main(int count, char **arguments) {
    time_t end = time(NULL) + (count > 1 ? atoi(arguments[1]) : 5);
    pthread_t reader;
    control = open_control();
    arena = open_arena(control, 1 << 20, 0);
    REQUIRE(mgc_map_attach(&map, control->base, arena->base, arena->header->size) == 0, "attach");
    REQUIRE(pthread_create(&reader, NULL, read_all_the_time, region_of(control, 0)) == 0, "no thread");
    uint64_t puts = 0;
    while (time(NULL) < end)
        for (uint32_t i = 0; i < 1000; i++) {
            contend(++puts);
            REQUIRE(put(arena, 0, puts, WORDS, MGC_MAIN), "no room");
        }
    atomic_store(&stopping, 1);
    pthread_join(reader, NULL);
    mgc_arena_sweep(arena);
    require_sound(arena);
    close_arena(arena);
    close_control(control);
    printf("%llu gets, %llu puts\n", (unsigned long long)gets, (unsigned long long)puts);
    return 0;
}
