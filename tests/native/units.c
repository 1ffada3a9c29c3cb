/* What of the core cannot be brought about from Python: chosen hashes, hits at the speed of C, odd heaps. */
#include "world.h"

static struct mgc_control *control;

static void hits_in_immediate_succession_keep_their_order(void) {
    enum { ENTRIES = 8 };
    struct mgc_arena *arena = open_arena(control, 1 << 20, 0);
    struct mgc_region *region = region_of(control, 0);
    struct mgc_map map;
    uint8_t key[32];
    REQUIRE(mgc_map_attach(&map, arena->base, arena->header->size) == 0, "attach");
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

int main(void) {
    control = open_control();
    hits_in_immediate_succession_keep_their_order();
    chosen_keys_do_not_grow_the_index();
    constants_in_keys_do_not_collide();
    the_last_block_is_found_behind_others();
    the_heap_hands_out_what_it_has_once();
    close_control(control);
    return 0;
}
