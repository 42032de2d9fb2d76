/* What gcc may call even without a C library. Compiled so that gcc does not turn these loops into calls to themselves. */
#include "guest.h"

void *memset(void *to, int byte, size_t size) {
    u8 *target = to;
    while (size--) *target++ = (u8)byte;
    return to;
}

void *memcpy(void *to, const void *from, size_t size) {
    u8 *target = to;
    const u8 *source = from;
    while (size--) *target++ = *source++;
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    u8 *target = to;
    const u8 *source = from;
    if (target <= source) return memcpy(to, from, size);
    while (size--) target[size] = source[size];
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const u8 *left = a, *right = b;
    for (; size; size--, left++, right++) {
        if (*left != *right) return *left - *right;
    }
    return 0;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length]) length++;
    return length;
}
