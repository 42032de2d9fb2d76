/*
 * Exceptions of every kind that a kernel meets, raised on purpose, handled through an IDT, and reported: vector, error code, CR2, and
 * that the interrupted code goes on. A page fault maps its page and the access is repeated; the last but one is a double fault.
 */
#include "guest.h"

/* The stack that vectors.S leaves. */
struct frame {
    u64 r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

struct gate {
    u16 offset_low, selector, type, offset_middle;
    u32 offset_high, reserved;
};

extern const u8 vectors[];
static struct gate idt[32] __attribute__((aligned(16)));

/* A part of the address space of its own: the 129th top-level entry, away from identity-mapped RAM. */
#define AWAY 0x400000000000ul
static u64 pml4[512] __attribute__((aligned(4096)));
static u64 pdpt[512] __attribute__((aligned(4096)));
static u64 pd[512] __attribute__((aligned(4096)));
static u64 pt[512] __attribute__((aligned(4096)));
static u8 backing[4096] __attribute__((aligned(4096)));

#define P 1ul
#define W 2ul
#define ACCESSED 0x20ul
#define DIRTY 0x40ul
#define NX (1ul << 63)

#define NOTHING 0xff

static volatile u64 seen_vector, seen_error, seen_cr2;
/* What handle() does: the entry to install for a page fault, else where to go on. */
static volatile u64 entry_to_install;
static volatile u64 go_on_at;
static int failures;

void handle(struct frame *frame) {
    u64 cr2;
    __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
    seen_vector = frame->vector;
    seen_error = frame->error;
    seen_cr2 = cr2;
    if (entry_to_install != 0) {
        pt[0] = entry_to_install;
        entry_to_install = 0;
        __asm__ volatile("invlpg (%0)" : : "r"(AWAY) : "memory");
        return;
    }
    if (go_on_at == 0) {
        if (frame->vector == 3) return;
        printf("unexpected exception %lu at 0x%lx, error 0x%lx, CR2 0x%lx\n", frame->vector, frame->rip, frame->error, cr2);
        exit(1);
    }
    frame->rip = go_on_at;
    go_on_at = 0;
}

static void set_gate(unsigned vector, u16 present) {
    u64 target = (u64)(vectors + 16 * vector);
    u16 cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    idt[vector] = (struct gate){(u16)target, cs, (u16)(present | 0x0e00), (u16)(target >> 16), (u32)(target >> 32), 0};
}

static void report(const char *what, u64 vector, u64 error, u64 cr2) {
    int right = seen_vector == vector && seen_error == error && (vector != 14 || seen_cr2 == cr2);
    printf("%s: #%lu error 0x%lx", what, seen_vector, seen_error);
    if (seen_vector == 14) printf(" CR2 0x%lx", seen_cr2);
    puts(right ? "" : "  WRONG");
    if (!right) {
        printf("  want #%lu error 0x%lx CR2 0x%lx\n", vector, error, cr2);
        failures++;
    }
    seen_vector = NOTHING;
}

static void expect(const char *what, u64 got, u64 want) {
    if (got == want) return;
    failures++;
    printf("%s: got 0x%lx, want 0x%lx\n", what, got, want);
}

/* Runs one instruction; if it raises an exception, goes on behind it. */
#define ATTEMPT(instruction, ...)                                            \
    __asm__ volatile("leaq 1f(%%rip), %%rax\n\tmovq %%rax, %0\n\t" instruction "\n1:" \
                     : "+m"(go_on_at)                                        \
                     : __VA_ARGS__                                           \
                     : "rax", "rcx", "rdx", "memory", "cc")

int main(void) {
    u64 cr3;
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (u64)idt};

    for (unsigned vector = 0; vector < 32; vector++) set_gate(vector, 0x8000);
    __asm__ volatile("lidt %0" : : "m"(pointer));

    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
    memcpy(pml4, (const void *)(cr3 & ~0xffful), sizeof pml4);
    pml4[AWAY >> 39 & 511] = (u64)pdpt | P | W;
    pdpt[0] = (u64)pd | P | W;
    pd[0] = (u64)pt | P | W;
    __asm__ volatile("mov %0, %%cr3" : : "r"((u64)pml4) : "memory");

    ATTEMPT("ud2", "i"(0));
    report("invalid opcode", 6, 0, 0);
    __asm__ volatile("int3");
    report("breakpoint", 3, 0, 0);
    ATTEMPT("xorl %%ecx, %%ecx\n\tmovl $1, %%eax\n\txorl %%edx, %%edx\n\tdivl %%ecx", "i"(0));
    report("division by zero", 0, 0, 0);
    ATTEMPT("movq (%1), %%rcx", "r"(0x800000000000ul));
    report("non-canonical address", 13, 0, 0);
    ATTEMPT("movl $0x12345678, %%ecx\n\twrmsr", "i"(0));
    report("unknown MSR", 13, 0, 0);

    volatile u64 *away = (volatile u64 *)AWAY;
    ATTEMPT("movq (%1), %%rcx", "r"(AWAY + 0x1238));
    report("read of an absent page", 14, 0, AWAY + 0x1238);
    ATTEMPT("movq %%rcx, (%1)", "r"(AWAY + 0x2000));
    report("write to an absent page", 14, 2, AWAY + 0x2000);

    *(u64 *)backing = 0x1122334455667788;
    entry_to_install = (u64)backing | P | NX;
    expect("demand-paged read", *away, 0x1122334455667788);
    report("read that maps its page", 14, 0, AWAY);
    expect("accessed, not dirty", pt[0] & (ACCESSED | DIRTY), ACCESSED);

    entry_to_install = (u64)backing | P | W | NX;
    *away = 42;
    report("write that makes its page writable", 14, 3, AWAY);
    expect("demand-paged write", *(u64 *)backing, 42);
    expect("accessed and dirty", pt[0] & (ACCESSED | DIRTY), ACCESSED | DIRTY);

    ATTEMPT("jmpq *%1", "r"(AWAY));
    report("fetch from a no-execute page", 14, 0x11, AWAY);

    u32 widths, b, c, d;
    cpuid(0x80000008, 0, &widths, &b, &c, &d);
    if ((u8)widths < 52) {
        pt[1] = (u64)backing | P | 1ul << 51;
        ATTEMPT("movq (%1), %%rcx", "r"(AWAY + 0x1000));
        report("reserved bit in an entry", 14, 9, AWAY + 0x1000);
    }

    /* A page fault whose gate is not present: the exception during its delivery makes a double fault. */
    set_gate(14, 0);
    ATTEMPT("movq (%1), %%rcx", "r"(AWAY + 0x3000));
    set_gate(14, 0x8000);
    report("double fault", 8, 0, 0);
    expect("CR2 of the fault behind it", seen_cr2, AWAY + 0x3000);

    ATTEMPT("movq (%1), %%rcx", "r"(AWAY + 0x3000));
    report("page fault after a double fault", 14, 0, AWAY + 0x3000);

    puts(failures == 0 ? "faults: all as they should be" : "faults: FAILED");
    return failures == 0 ? 0 : 1;
}
