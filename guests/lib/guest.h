/* What a guest here may count on: console, exit, hypercalls, a little printf, and memory filled and checked by string instructions. */
#ifndef GUEST_H
#define GUEST_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef long s64;
typedef u64 size_t;

#define KIB 1024ul
#define MIB (1024 * KIB)
#define PAGE 4096ul

/* One past the last byte of RAM: where the VMM set the stack. */
extern u64 ram_top;

int main(void);
void putc(char c);
void puts(const char *text);
/* %s %c %d %u %x, with l for 64 bit; %0Nx and %Nu pad. */
void printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Ends the run; the VMM's exit status is `code`. */
void exit(int code) __attribute__((noreturn));
/* Stops this vCPU. */
void park(void) __attribute__((noreturn));

void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);

static inline void outb(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) {
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline void cpuid(u32 leaf, u32 sub, u32 *a, u32 *b, u32 *c, u32 *d) {
    __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(sub));
}

/* KVM hypercalls: number in RAX, arguments in RBX RCX RDX RSI, answer in RAX. AMD's instruction and Intel's. */
static inline s64 vmmcall(u64 number, u64 a0, u64 a1, u64 a2) {
    s64 answer;
    __asm__ volatile("vmmcall" : "=a"(answer) : "a"(number), "b"(a0), "c"(a1), "d"(a2) : "memory");
    return answer;
}
static inline s64 vmcall(u64 number, u64 a0, u64 a1, u64 a2) {
    s64 answer;
    __asm__ volatile("vmcall" : "=a"(answer) : "a"(number), "b"(a0), "c"(a1), "d"(a2) : "memory");
    return answer;
}

#define KVM_HC_MAP_GPA_RANGE 12
#define MAP_GPA_RANGE_ENCRYPTED (1ul << 4)

/* Writes `word` to all of [start, start + bytes). */
static inline void fill(u64 start, u64 bytes, u64 word) {
    u64 count = bytes / 8;
    __asm__ volatile("rep stosq" : "+D"(start), "+c"(count) : "a"(word) : "memory");
}

/* First address in [start, start + bytes) that does not hold `word`, or 0. */
static inline u64 first_other(u64 start, u64 bytes, u64 word) {
    u64 at = start, count = bytes / 8;
    u8 same;
    if (count == 0) return 0;
    __asm__ volatile("repe scasq\n\tsete %2" : "+D"(at), "+c"(count), "=q"(same) : "a"(word) : "memory", "cc");
    return same ? 0 : at - 8;
}

#endif
