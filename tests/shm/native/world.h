/* An instance and its arenas in memfds, and values that can be verified, for the tests of the C core. */
#ifndef WORLD_H
#define WORLD_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "reader.h"
#include "writer.h"

static char doing[160]; /* what a failure is said to be in the middle of */

#define REQUIRE(condition, ...)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s: %s: ", __FILE__, __LINE__, doing, #condition);                                  \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            fputc('\n', stderr);                                                                                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* ---- Chance ---- */

static inline uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static inline uint64_t below(uint64_t *state, uint64_t limit) { return next_random(state) % limit; }

/* ---- Values: whose they are, which version, and a word for each place that only this version has there ---- */

#define VALUE_WORDS_MIN 2u

static inline uint64_t value_word(uint64_t key, uint64_t version, uint64_t i) {
    return (key * 0x9e3779b97f4a7c15ull ^ version) + i * 0xd1b54a32d192ed03ull;
}

static inline void fill_value(uint8_t *value, uint64_t key, uint64_t version, uint64_t words) {
    uint64_t *word = (uint64_t *)(void *)value;
    word[0] = key;
    word[1] = version;
    for (uint64_t i = VALUE_WORDS_MIN; i < words; i++)
        word[i] = value_word(key, version, i);
}

/* The version of an intact value; exits where it is another key's, or torn. */
static inline uint64_t verify_value(const struct mgc_hit *hit, uint64_t key, const char *when) {
    const uint64_t *word = (const uint64_t *)(const void *)hit->value;
    uint64_t words = hit->length / 8;
    REQUIRE(hit->length % 8 == 0 && words >= VALUE_WORDS_MIN, "key %llu %s: value of %llu bytes", (unsigned long long)key,
            when, (unsigned long long)hit->length);
    REQUIRE(word[0] == key, "key %llu %s: value of key %llu", (unsigned long long)key, when, (unsigned long long)word[0]);
    for (uint64_t i = VALUE_WORDS_MIN; i < words; i++)
        REQUIRE(word[i] == value_word(key, word[1], i), "key %llu %s: word %llu of %llu is not of version %llu",
                (unsigned long long)key, when, (unsigned long long)i, (unsigned long long)words,
                (unsigned long long)word[1]);
    return word[1];
}

/* Keys have several lengths, and one of them is a whole number of the hash's steps. */
static inline size_t make_key(uint64_t key, uint8_t bytes[32]) {
    memset(bytes, 'k', 32);
    memcpy(bytes, &key, 8);
    return 8 + key % 25;
}

/* ---- Segments ---- */

static inline void *map_memfd(const char *name, uint64_t size, int *fd) {
    *fd = memfd_create(name, MFD_CLOEXEC);
    REQUIRE(*fd >= 0 && ftruncate(*fd, (off_t)size) == 0, "%s", strerror(errno));
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    REQUIRE(base != MAP_FAILED, "%s", strerror(errno));
    return base;
}

static inline struct mgc_control *open_control(void) {
    struct mgc_control *control = malloc(sizeof *control);
    int fd;
    uint8_t *base = map_memfd("control", MGC_CONTROL_SIZE, &fd);
    REQUIRE(mgc_control_format(control, base, fd, (const uint8_t *)"0123456789abcdef") == 0, "no memory");
    return control;
}

static inline void close_control(struct mgc_control *control) {
    mgc_control_close(control);
    munmap(control->base, MGC_CONTROL_SIZE);
    close(control->fd);
    free(control);
}

static inline void format_arena(struct mgc_arena *arena, uint8_t *base, int fd, struct mgc_control *control, uint64_t budget,
                                uint32_t incarnation) {
    struct mgc_arena_options options = {
        .incarnation = incarnation, .budget = budget, .max_entry = budget / 4, .seed = 0x5eed + incarnation};
    REQUIRE(mgc_arena_format(arena, base, fd, control, &options) == 0, "no memory");
}

static inline struct mgc_arena *open_arena(struct mgc_control *control, uint64_t budget, uint32_t incarnation) {
    struct mgc_arena *arena = malloc(sizeof *arena);
    int fd;
    uint8_t *base = map_memfd("arena", mgc_arena_size(budget), &fd);
    format_arena(arena, base, fd, control, budget, incarnation);
    return arena;
}

static inline void close_arena(struct mgc_arena *arena) {
    uint8_t *base = arena->base;
    uint64_t size = arena->header->size;
    int fd = arena->fd;
    mgc_arena_close(arena);
    munmap(base, size);
    close(fd);
    free(arena);
}

/* Makes an arena's memory as good as new before it is closed, for much less than new memory costs. */
static inline void erase_arena(const struct mgc_arena *arena) {
    const struct mgc_arena_header *header = arena->header;
    uint8_t *base = arena->base;
    memset(base + header->slots_offset, 0, arena->slots_committed * sizeof(struct mgc_slot));
    memset(base + header->index_offset, 0, arena->index_committed - header->index_offset);
    memset(base + header->entries_offset, 0, arena->heap.end - header->entries_offset);
    memset(base, 0, MGC_PAGE);
}

static inline void report_fault(void *context, const char *line) {
    (void)context;
    fprintf(stderr, "%s\n", line);
}

static inline void require_sound(const struct mgc_arena *arena) {
    REQUIRE(mgc_arena_check(arena, report_fault, NULL) == 0, "the arena is not sound");
}

/* Room for a value of a list that is for ever. */
static inline int reserve(struct mgc_arena *arena, uint64_t key, uint64_t bytes, uint32_t list,
                          struct mgc_reservation *reservation) {
    struct mgc_traits traits = {.flags = list};
    uint8_t name[32];
    return mgc_arena_reserve(arena, name, make_key(key, name), bytes, &traits, reservation) == 0;
}

static inline int put_with(struct mgc_arena *arena, uint64_t key, uint64_t version, uint64_t words,
                           const struct mgc_traits *traits) {
    struct mgc_reservation reservation;
    uint8_t bytes[32];
    if (mgc_arena_reserve(arena, bytes, make_key(key, bytes), words * 8, traits, &reservation) != 0)
        return 0;
    fill_value(reservation.value, key, version, words);
    return mgc_arena_publish(arena, &reservation);
}

static inline int put(struct mgc_arena *arena, uint64_t key, uint64_t version, uint64_t words, uint32_t list) {
    return put_with(arena, key, version, words, &(struct mgc_traits){.flags = list});
}

static inline int remove_key(struct mgc_arena *arena, uint64_t key) {
    uint8_t bytes[32];
    return mgc_arena_remove(arena, bytes, make_key(key, bytes), 0);
}

static inline struct mgc_region *region_of(const struct mgc_control *control, int number) {
    return (struct mgc_region *)(void *)(control->base + MGC_REGIONS_OFFSET + (size_t)number * MGC_REGION_STRIDE);
}

#endif
