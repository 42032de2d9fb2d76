/* The first guest: says where it runs. */
#include "guest.h"

int main(void) {
    char vendor[13] = {0};
    u32 a, b, c, d;
    cpuid(0, 0, &a, &b, &c, &d);
    const u32 words[3] = {b, d, c};
    memcpy(vendor, words, 12);
    printf("Hello from a guest: vCPU 0, CPL 0, %lu MiB of RAM, CPU %s.\n", ram_top / MIB, vendor);
    return 0;
}
