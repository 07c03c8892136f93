// Semihosting: what a real board has in flash, a sensor and a display are the host's files.
#include "board.h"

static uintptr_t call(uintptr_t operation, const void *block) {
    register uintptr_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = block;
    __asm__ volatile("bkpt #0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static size_t length(const char *text) {
    size_t count = 0;
    while (text[count]) count++;
    return count;
}

int host_open(const char *name, enum host_mode mode) {
    const uintptr_t block[] = {(uintptr_t)name, mode, length(name)};
    return (int)call(0x01, block);
}

void host_close(int file) {
    const uintptr_t block[] = {(uintptr_t)file};
    call(0x02, block);
}

size_t host_read(int file, void *bytes, size_t room) {
    const uintptr_t block[] = {(uintptr_t)file, (uintptr_t)bytes, room};
    size_t left = call(0x06, block);
    return left <= room ? room - left : 0;
}

int host_write(int file, const void *bytes, size_t count) {
    const uintptr_t block[] = {(uintptr_t)file, (uintptr_t)bytes, count};
    return call(0x05, block) == 0;
}

int host_seek(int file, size_t place) {
    const uintptr_t block[] = {(uintptr_t)file, place};
    return call(0x0a, block) == 0;
}

void host_say(const char *text) { call(0x04, text); }

void host_exit(int code) {
    const uintptr_t block[] = {0x20026, (uintptr_t)code};
    for (;;) call(0x20, block);
}
