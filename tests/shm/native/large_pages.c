/* To be preloaded: mappings as a kernel with pages of 64 KiB makes them, and refuses them.
 *
 * What the program itself maps is meant; the loader has its own way of doing so. A segment of ours is refused, too, where
 * it is not mapped in whole pages: a kernel would map more than was asked for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 65536ul
#define UP(bytes) (((bytes) + PAGE - 1) & ~(PAGE - 1))

static int refused(void) {
    errno = EINVAL;
    return -1;
}

static int is_segment(int fd) {
    char link[64], path[256] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return readlink(link, path, sizeof path - 1) > 0 && strncmp(path, "/dev/shm/mpgroupcache-", 22) == 0;
}

static void *map(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    int is_file = !(flags & MAP_ANONYMOUS);
    if ((is_file && offset % PAGE) || ((flags & MAP_FIXED) && (uintptr_t)address % PAGE) ||
        (is_file && length % PAGE && is_segment(fd)))
        return (void *)(intptr_t)refused(); /* MAP_FAILED */
    if (flags & MAP_FIXED)
        return map(address, length, protection, flags, fd, offset);
    uint8_t *room = map(NULL, UP(length) + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        return MAP_FAILED;
    uint8_t *place = (uint8_t *)UP((uintptr_t)room);
    if (place > room)
        syscall(SYS_munmap, room, place - room);
    syscall(SYS_munmap, place + UP(length), room + PAGE - place);
    void *mapped = map(place, length, protection, flags | MAP_FIXED, fd, offset);
    if (mapped == MAP_FAILED) {
        int error = errno;
        syscall(SYS_munmap, place, UP(length));
        errno = error;
    }
    return mapped;
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}

int munmap(void *address, size_t length) {
    return (uintptr_t)address % PAGE ? refused() : (int)syscall(SYS_munmap, address, UP(length));
}

int madvise(void *address, size_t length, int advice) {
    return (uintptr_t)address % PAGE ? refused() : (int)syscall(SYS_madvise, address, UP(length), advice);
}

int mprotect(void *address, size_t length, int protection) {
    return (uintptr_t)address % PAGE ? refused() : (int)syscall(SYS_mprotect, address, UP(length), protection);
}
