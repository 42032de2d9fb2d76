/*
 * Several processors beside each other. The boot processor uses its local APIC's page, then its x2APIC MSRs, starts the others by INIT and
 * SIPI, and all of them take turns at: interrupts from each other, timers, NMIs, and pages that they convert between private and shared
 * (where the VM has private memory), write and check while they are interrupted. Every count is checked; the last line is the verdict.
 */
#include "guest.h"
#include "limits.h"

#define TRAMPOLINE 0x8000ul
#define ROUNDS 8

#define VECTOR_IPI 0x40
#define VECTOR_TIMER 0x51
#define VECTOR_GROUP 0x60
#define VECTOR_SELF 0x70
#define VECTOR_WAKE 0x80
#define VECTOR_SERIAL 0x90
#define VECTOR_SPURIOUS 0xff

#define APIC_BASE_MSR 0x1b
#define X2APIC_ENABLE 0x400
#define APIC_ENABLE 0x800
#define APIC_PAGE 0xfee00000ul
#define TSC_DEADLINE_MSR 0x6e0

#define ID 0x20
#define VERSION 0x30
#define EOI 0xb0
#define SPURIOUS 0xf0
#define ICR 0x300
#define LVT_TIMER 0x320
#define INITIAL_COUNT 0x380
#define CURRENT_COUNT 0x390
#define DIVIDE 0x3e0
#define SELF_IPI 0x3f0

#define IOAPIC_PAGE 0xfec00000ul
#define IOAPIC_SERIAL_PIN 4
#define LEVEL_TRIGGERED 0x8000
#define REMOTE_IRR 0x4000
#define MASKED 0x10000

#define SERIAL 0x3f8
#define SERIAL_ENABLE (SERIAL + 1)
#define SERIAL_REASON (SERIAL + 2)
#define TRANSMITTER_EMPTY 2

#define INIT 0x4500
#define STARTUP 0x4600
#define NMI 0x400
#define OTHERS 0xc0000
#define SELF 0x40000
#define LOGICAL 0x800
#define DEADLINE_MODE 0x40000
#define PERIODIC_MODE 0x20000

#define AREA (16 * MIB)
#define AREA_PAGES 8

extern const u8 trampoline[], trampoline_end[], trampoline_cr3[], vectors[];
extern void processor_entry(void);

struct gate {
    u16 offset_low, selector, type, offset_middle;
    u32 offset_high, reserved;
};
static struct gate idt[256] __attribute__((aligned(16)));
static u64 gdt[4] __attribute__((aligned(16))) = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff};

/* The boot processor has another one; the last processor takes two, since it starts twice. */
u8 stacks[MAX_PROCESSORS << STACK_SHIFT] __attribute__((aligned(4096)));
/* Starts so far. */
volatile u32 next_processor = 1;

struct processor {
    volatile u64 online, ipis, timers, groups, selves, nmis, bad_vector, bad_rip, failures, early, done;
} __attribute__((aligned(64)));
static struct processor processors[MAX_PROCESSORS];
static volatile u64 stage;
static volatile u64 serial_interrupts, serial_left;
static int x2apic, convertible = 1;

static inline u64 rdmsr(u32 msr) {
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return low | (u64)high << 32;
}
static inline void wrmsr(u32 msr, u64 value) {
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}
static inline u64 rdtsc(void) {
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return low | (u64)high << 32;
}
static inline void pause(void) { __asm__ volatile("pause" : : : "memory"); }

static u64 apic_read(u32 reg) { return x2apic ? rdmsr(0x800 + reg / 16) : *(volatile u32 *)(APIC_PAGE + reg); }
static void apic_write(u32 reg, u64 value) {
    if (x2apic) {
        wrmsr(0x800 + reg / 16, value);
        return;
    }
    if (reg == ICR) *(volatile u32 *)(APIC_PAGE + ICR + 0x10) = (u32)(value >> 32) << 24;
    *(volatile u32 *)(APIC_PAGE + reg) = (u32)value;
}

/* This processor's number: what its x2APIC id is. */
static u32 self(void) { return (u32)(x2apic ? rdmsr(0x802) : *(volatile u32 *)(APIC_PAGE + ID) >> 24); }

void handle(u64 vector, u64 error, u64 rip) {
    struct processor *me = &processors[self()];
    (void)error;
    switch (vector) {
    case 2:
        me->nmis++;
        return;
    case VECTOR_IPI:
        me->ipis++;
        break;
    case VECTOR_TIMER:
        me->timers++;
        break;
    case VECTOR_GROUP:
        me->groups++;
        break;
    case VECTOR_WAKE:
        break;
    case VECTOR_SERIAL:
        /* Asking for the reason takes it away; some are left for the next time. */
        serial_interrupts++;
        if (serial_left != 0) serial_left--;
        else inb(SERIAL_REASON);
        break;
    case VECTOR_SELF:
        me->selves++;
        break;
    default:
        me->bad_vector = vector;
        me->bad_rip = rip;
        if (vector < 32)
            for (;;) __asm__ volatile("cli; hlt");
    }
    apic_write(EOI, 0);
}

static void load_tables(void) {
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) table = {sizeof idt - 1, (u64)idt}, segments = {sizeof gdt - 1, (u64)gdt};
    __asm__ volatile("lgdt %0" : : "m"(segments));
    __asm__ volatile("lidt %0" : : "m"(table));
}

static void enable_x2apic(void) {
    wrmsr(APIC_BASE_MSR, rdmsr(APIC_BASE_MSR) | APIC_ENABLE | X2APIC_ENABLE);
    wrmsr(0x800 + SPURIOUS / 16, 0x100 | VECTOR_SPURIOUS);
    wrmsr(0x800 + DIVIDE / 16, 0xb);
}

/* Waits until *what is at least `want`, or some thousand million ticks. */
static int wait_for(volatile u64 *what, u64 want) {
    u64 end = rdtsc() + 4000000000;
    while (*what < want) {
        if (rdtsc() > end) return 0;
        pause();
    }
    return 1;
}

/* Sleeps until the handler of the timer has counted. Interrupts are off before and after. */
static void sleep_until(struct processor *me, u64 count) {
    while (me->timers < count) __asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* Sleeps for some ticks. Interrupts are off before and after. */
static void sleep(struct processor *me, u64 ticks) {
    u64 before = me->timers;
    apic_write(LVT_TIMER, DEADLINE_MODE | VECTOR_TIMER);
    wrmsr(TSC_DEADLINE_MSR, rdtsc() + ticks);
    sleep_until(me, before + 1);
}

static u64 pattern(u32 number, u32 round) { return 0x0101010101010101ul * (number + 1) + round; }

/* Converts, writes and checks this processor's pages, next to its neighbours'. */
static void use_pages(struct processor *me, u32 number, u32 round) {
    u64 start = AREA + number * AREA_PAGES * PAGE, bytes = AREA_PAGES * PAGE;
    for (int to_private = 0; to_private <= 1; to_private++) {
        if (convertible) {
            u64 attributes = to_private ? MAP_GPA_RANGE_ENCRYPTED : 0;
            if (vmmcall(KVM_HC_MAP_GPA_RANGE, start, AREA_PAGES, attributes) != 0) me->failures++;
            if (first_other(start, bytes, 0) != 0) me->failures++;
        }
        fill(start, bytes, pattern(number, round));
        if (first_other(start, bytes, pattern(number, round)) != 0) me->failures++;
    }
}

/* What every processor does in stage 1. */
static void work(u32 number, u32 count) {
    struct processor *me = &processors[number], *next = &processors[(number + 1) % count];
    /* A periodic timer all the while. */
    apic_write(LVT_TIMER, PERIODIC_MODE | VECTOR_TIMER);
    apic_write(INITIAL_COUNT, 200000);
    __asm__ volatile("sti");
    for (u32 round = 1; round <= ROUNDS; round++) {
        apic_write(ICR, (u64)((number + 1) % count) << 32 | VECTOR_IPI);
        use_pages(me, number, round);
        if (!wait_for(&next->ipis, round)) me->failures++;
    }
    if (!wait_for(&me->ipis, ROUNDS)) me->failures++;
    if (!wait_for(&me->timers, 2)) me->failures++;
    __asm__ volatile("cli");
    apic_write(INITIAL_COUNT, 0);
    /* A deadline, asleep. */
    apic_write(LVT_TIMER, DEADLINE_MODE | VECTOR_TIMER);
    for (u32 round = 0; round < 3; round++) {
        u64 deadline = rdtsc() + 1000000, count_before;
        __asm__ volatile("sti; nop; cli");
        count_before = me->timers;
        wrmsr(TSC_DEADLINE_MSR, deadline);
        sleep_until(me, count_before + 1);
        if (rdtsc() < deadline) me->early++;
        if (rdmsr(TSC_DEADLINE_MSR) != 0) me->failures++;
    }
    if (me->timers < 5) me->failures++;
    me->done++;
    __asm__ volatile("sti");
}

void secondary(void) {
    u32 number;
    load_tables();
    enable_x2apic();
    number = self();
    if (number >= MAX_PROCESSORS) return;
    processors[number].online++;
    while (stage == 0) __asm__ volatile("sti; hlt; cli" : : : "memory");
    work(number, (u32)stage);
    for (;;) __asm__ volatile("hlt");
}

static int failures;
static void verdict(const char *what, int right, u64 got, u64 want) {
    if (right) {
        printf("%s: %lu\n", what, got);
        return;
    }
    failures++;
    printf("%s: got %lu, want %lu  WRONG\n", what, got, want);
}

/* Waits for a count, and says whether it is right then. */
static void verdict_of(const char *what, volatile u64 *count, u64 want) {
    int right = wait_for(count, want);
    verdict(what, right && *count == want, *count, want);
}

/* The page of the local APIC, before x2APIC: a self IPI and a one-shot timer. */
static void use_xapic(void) {
    struct processor *me = &processors[0];
    apic_write(SPURIOUS, 0x100 | VECTOR_SPURIOUS);
    verdict("xAPIC version", (apic_read(VERSION) & 0xff) >= 0x10, apic_read(VERSION) & 0xff, 0x14);
    apic_write(ICR, SELF | VECTOR_SELF);
    __asm__ volatile("sti");
    verdict_of("xAPIC self interrupts", &me->selves, 1);
    __asm__ volatile("cli");
    apic_write(DIVIDE, 0xb);
    apic_write(LVT_TIMER, VECTOR_TIMER);
    apic_write(INITIAL_COUNT, 100000);
    sleep_until(me, 1);
    verdict("xAPIC timer interrupts", me->timers == 1 && apic_read(CURRENT_COUNT) == 0, me->timers, 1);
    me->timers = 0;
}

static u32 ioapic_read(u32 reg) {
    *(volatile u32 *)IOAPIC_PAGE = reg;
    return *(volatile u32 *)(IOAPIC_PAGE + 0x10);
}
static void ioapic_write(u32 reg, u32 value) {
    *(volatile u32 *)IOAPIC_PAGE = reg;
    *(volatile u32 *)(IOAPIC_PAGE + 0x10) = value;
}

/* The serial port's interrupt through the IOAPIC: an edge, and a level that stays until it is seen to. */
static void use_ioapic(void) {
    u32 entry = 0x10 + 2 * IOAPIC_SERIAL_PIN;
    verdict("IOAPIC pins", (ioapic_read(1) >> 16 & 0xff) == 23, (ioapic_read(1) >> 16 & 0xff) + 1, 24);
    __asm__ volatile("sti");
    ioapic_write(entry + 1, 0);
    ioapic_write(entry, VECTOR_SERIAL);
    outb(SERIAL_ENABLE, TRANSMITTER_EMPTY);
    wait_for(&serial_interrupts, 1);
    outb(SERIAL_ENABLE, 0);
    verdict_of("IOAPIC edge interrupts", &serial_interrupts, 1);
    serial_interrupts = 0;
    serial_left = 2;
    ioapic_write(entry, VECTOR_SERIAL | LEVEL_TRIGGERED);
    outb(SERIAL_ENABLE, TRANSMITTER_EMPTY);
    wait_for(&serial_interrupts, 3);
    outb(SERIAL_ENABLE, 0);
    verdict_of("IOAPIC level interrupts", &serial_interrupts, 3);
    verdict("IOAPIC remote IRR", !(ioapic_read(entry) & REMOTE_IRR), ioapic_read(entry) >> 14 & 1, 0);
    ioapic_write(entry, MASKED);
    __asm__ volatile("cli");
}

static u32 start_others(void) {
    u64 cr3;
    u32 seen;
    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
    memcpy((void *)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
    *(u32 *)(TRAMPOLINE + (size_t)(trampoline_cr3 - trampoline)) = (u32)cr3;
    apic_write(ICR, OTHERS | INIT);
    sleep(&processors[0], 100000000);
    apic_write(ICR, OTHERS | STARTUP | TRAMPOLINE / PAGE);
    /* As many as come, until none has come for a while. */
    do {
        seen = next_processor;
        sleep(&processors[0], 200000000);
    } while (next_processor != seen);
    processors[0].timers = 0;
    return seen;
}

int main(void) {
    u32 a, b, c, d, count;
    u64 group = 0, sum = 0;
    cpuid(1, 0, &a, &b, &c, &d);
    if (!(c & (1u << 21))) {
        puts("no local APIC with x2APIC: run with --irqchip split");
        return 2;
    }
    if (ram_top < AREA + MAX_PROCESSORS * AREA_PAGES * PAGE) {
        printf("needs %lu MiB of RAM, has %lu\n", AREA / MIB + 1, ram_top / MIB);
        return 2;
    }
    for (unsigned vector = 0; vector < 256; vector++) {
        u64 target = (u64)(vectors + 16 * vector);
        idt[vector] = (struct gate){(u16)target, 8, 0x8e00, (u16)(target >> 16), (u32)(target >> 32), 0};
    }
    load_tables();
    use_xapic();
    enable_x2apic();
    x2apic = 1;
    processors[0].online++;
    processors[0].selves = 0;
    __asm__ volatile("sti");
    apic_write(SELF_IPI, VECTOR_SELF);
    verdict_of("x2APIC self interrupts", &processors[0].selves, 1);
    __asm__ volatile("cli");
    use_ioapic();

    count = start_others();
    printf("processors: %u\n", count);
    if (count > MAX_PROCESSORS) {
        printf("at most %u\n", MAX_PROCESSORS);
        return 2;
    }
    for (u32 i = 0; i < count; i++) verdict("  came once", processors[i].online == 1, processors[i].online, 1);

    convertible = vmmcall(KVM_HC_MAP_GPA_RANGE, AREA, 1, MAP_GPA_RANGE_ENCRYPTED) == 0;
    printf("memory: %s\n", convertible ? "private, converted as it goes" : "without conversions");
    stage = count;
    apic_write(ICR, OTHERS | VECTOR_WAKE);
    work(0, count);
    for (u32 i = 0; i < count; i++) {
        struct processor *p = &processors[i];
        if (!wait_for(&p->done, 1)) printf("processor %u did not finish\n", i);
        verdict("  interrupts from its neighbour", p->ipis == ROUNDS, p->ipis, ROUNDS);
        verdict("  early timers", p->early == 0, p->early, 0);
        verdict("  pages wrong", p->failures == 0 && p->done == 1, p->failures, 0);
    }

    /* One message to all by their logical ids, and to one of them by lowest priority. */
    for (u32 i = 0; i < count; i++) group |= 1ul << i;
    apic_write(ICR, group << 32 | LOGICAL | VECTOR_GROUP);
    for (u32 i = 0; i < count; i++) verdict_of("  group interrupts", &processors[i].groups, 1);
    apic_write(ICR, group << 32 | LOGICAL | 0x100 | VECTOR_GROUP);
    __asm__ volatile("cli");
    sleep(&processors[0], 100000000);
    __asm__ volatile("sti");
    for (u32 i = 0; i < count; i++) sum += processors[i].groups;
    verdict("group interrupts in all", sum == count + 1, sum, count + 1);

    apic_write(ICR, OTHERS | NMI);
    for (u32 i = 1; i < count; i++) verdict_of("  NMIs", &processors[i].nmis, 1);

    /* INIT stops a running processor; SIPI starts it anew. */
    if (count > 1) {
        u32 last = count - 1;
        stage = 0;
        apic_write(ICR, (u64)last << 32 | INIT);
        apic_write(ICR, (u64)last << 32 | STARTUP | TRAMPOLINE / PAGE);
        verdict_of("starts of the last one", &processors[last].online, 2);
    }
    for (u32 i = 0; i < count; i++)
        if (processors[i].bad_vector != 0) {
            failures++;
            printf("processor %u: vector %lu at 0x%lx  WRONG\n", i, processors[i].bad_vector, processors[i].bad_rip);
        }
    puts(failures == 0 ? "all right" : "FAILED");
    return failures != 0;
}
