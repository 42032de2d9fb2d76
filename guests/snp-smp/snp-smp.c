/*
 * Several processors of an SNP guest. The boot processor makes a VMSA for each of the others and has the host start them (AP creation: at once, and at their next INIT)
 * and take them away; they work beside each other, each with its own GHCB, on pages that they convert, write and check. It also asks for what the host has to refuse.
 */
#include "vmsa.h"

#define MAX_PROCESSORS 8
#define ROUNDS 4
#define PAGES 4
#define AREA (8 * MIB)
#define GHCBS (6 * MIB)
#define STACK 16384ul

#define APIC_PAGE 0xfee00000ul
#define APIC_ID 0x20
#define APIC_VERSION 0x30
#define APIC_TASK_PRIORITY 0x80
#define IOAPIC_PAGE 0xfec00000ul
#define APIC_BASE 0x1b
#define X2APIC_ENABLE 0xc00
#define X2APIC_ICR 0x830
#define INIT 0x4500
#define STARTUP 0x4608

#define CREATE_ON_INIT 0
#define CREATE 1
#define DESTROY 2
#define MALFORMED 2
#define INVALID_INPUT 5

extern void processor_entry(void);
extern void load_gates(void);
void processor_main(void);

/* No VMSA may begin 2 MiB: an erratum of real parts. */
static u8 vmsas[MAX_PROCESSORS][2][PAGE] __attribute__((aligned(4096)));
static u8 stacks[MAX_PROCESSORS][STACK] __attribute__((aligned(16)));
static struct processor {
    struct vcpu vcpu;
    volatile u32 starts, command, done, failures, held;
    volatile u64 beats;
} processors[MAX_PROCESSORS];
enum { IDLE, WORK, BEAT, HOLD };

static int failures;
static void expect(const char *what, u32 processor, int holds) {
    if (holds) return;
    failures++;
    printf("WRONG: processor %u: %s\n", processor, what);
}

/* A port that the VMM serves: the others get their turn. */
static void relax(void) { inb(0x3fd); }
static void wait(volatile u32 *flag, u32 value) {
    while (*flag != value) relax();
}

static void convert_and_check(struct processor *me) {
    u64 area = AREA + me->vcpu.index * PAGES * PAGE, bytes = PAGES * PAGE;
    u64 word = 0x1111111111111111ul * me->vcpu.index;
    for (u64 round = 0; round < ROUNDS; round++) {
        fill(area, bytes, word + round);
        relax();
        if (first_other(area, bytes, word + round)) me->failures++;
        make_shared(area, PAGES);
        if (first_other(area, bytes, 0)) me->failures++;
        fill(area, bytes, ~word);
        relax();
        if (first_other(area, bytes, ~word)) me->failures++;
        make_private(area, PAGES);
    }
}

void processor_main(void) {
    struct processor *me = (struct processor *)this_vcpu();
    load_gates();
    ghcb_register(&me->vcpu, (u8 *)(GHCBS + me->vcpu.index * PAGE));
    u32 a, b, c, d;
    cpuid(1, 0, &a, &b, &c, &d);
    if (b >> 24 != me->vcpu.index) me->failures++;
    me->starts++;
    for (;;) {
        u32 command = me->command;
        if (command == BEAT) me->beats++;
        if (command == WORK || command == HOLD) {
            if (command == WORK) convert_and_check(me);
            else if (ghcb_event(EVENT_AP_RESET_HOLD, 0, 0) != 0 || ghcb_get(GHCB_INFO2) == 0) me->failures++;
            me->command = IDLE;
            me->done++;
        }
        relax();
    }
}

/* One AP creation event: what the host said, and why. */
static u32 create(u64 request, u64 processor, u64 vmsa, u64 features, u64 *reason) {
    ghcb_set(GHCB_RAX, features);
    u32 answer = ghcb_event(EVENT_AP_CREATION, processor << 32 | request, vmsa);
    *reason = ghcb_get(GHCB_INFO2);
    return answer;
}

static void send(u32 processor, u32 what) { wrmsr(X2APIC_ICR, (u64)processor << 32 | what); }

static void refusals(u32 count) {
    const u64 vmsa = (u64)vmsas[1][0], features = vmsa_features();
    const struct {
        const char *what;
        u64 request, processor, vmsa, features;
    } requests[] = {
        {"a processor that does not exist", CREATE, count, vmsa, features},
        /* Restricted injection: of the features that older kernels compare. */
        {"other features", CREATE, 1, vmsa, features | 8},
        {"a VMSA that is no page", CREATE, 1, vmsa + 8, features},
        {"a VMSA at 2 MiB", CREATE, 1, 4 * MIB, features},
        {"a VMSA beyond all memory", CREATE_ON_INIT, 1, 1ul << 60, features},
        {"a request that does not exist", 3, 1, vmsa, features},
    };
    for (unsigned i = 0; i < sizeof requests / sizeof *requests; i++) {
        u64 reason;
        u32 answer = create(requests[i].request, requests[i].processor, requests[i].vmsa, requests[i].features, &reason);
        expect(requests[i].what, 1, answer == MALFORMED && reason == INVALID_INPUT);
    }
    puts("what has to be refused: done");
}

static void prepare(u32 i, int which) {
    struct processor *it = &processors[i];
    it->vcpu.index = i;
    it->command = IDLE;
    vmsa_fill(vmsas[i][which], (u64)processor_entry, (u64)stacks[i] + STACK, &it->vcpu);
    expect("RMPADJUST of its VMSA", i, vmsa_declare(vmsas[i][which], 1) == 0);
}

/* The processor beats; once it was destroyed it does not, and its VMSA is a page like others again. */
static void destroy(u32 i) {
    struct processor *it = &processors[i];
    u64 reason, before = it->beats;
    it->command = BEAT;
    while (it->beats < before + 3) relax();
    expect("destroyed", i, create(DESTROY, i, 0, 0, &reason) == 0);
    before = it->beats;
    for (int turn = 0; turn < 200; turn++) relax();
    expect("stands still", i, it->beats == before);
    expect("its VMSA is given back", i, vmsa_declare(vmsas[i][0], 0) == 0);
    memset(vmsas[i][0], 0, PAGE);
}

/* MMIO by the GHCB: the local APIC's page, which the host's kernel serves, and the IOAPIC, which its VMM does. */
static void mmio(void) {
    map_shared(APIC_PAGE, 1);
    map_shared(IOAPIC_PAGE, 1);
    u32 version = *(volatile u32 *)(APIC_PAGE + APIC_VERSION);
    expect("its APIC id", 0, *(volatile u32 *)(APIC_PAGE + APIC_ID) == 0);
    *(volatile u32 *)(APIC_PAGE + APIC_TASK_PRIORITY) = 0x30;
    expect("its task priority", 0, *(volatile u32 *)(APIC_PAGE + APIC_TASK_PRIORITY) == 0x30);
    *(volatile u32 *)(APIC_PAGE + APIC_TASK_PRIORITY) = 0;
    volatile u32 *select = (volatile u32 *)IOAPIC_PAGE, *window = (volatile u32 *)(IOAPIC_PAGE + 0x10);
    *select = 1;
    u32 pins = *window >> 16;
    *select = 0x10;
    u32 before = *window;
    *window = before ^ 0x55;
    expect("an IOAPIC register", 0, *window == (before ^ 0x55));
    *window = before;
    /* The same register by other instructions. */
    u64 wide = 0xffffffff00000000ul;
    u8 byte = 0;
    __asm__ volatile("movl (%2), %k0\n\tmovb 1(%2), %1" : "+r"(wide), "+q"(byte) : "r"(IOAPIC_PAGE) : "memory");
    expect("a load of 32 bits clears the rest", 0, wide == 0x10);
    __asm__ volatile("movb $0x01, (%0)" : : "r"(IOAPIC_PAGE) : "memory");
    expect("a store of a constant", 0, (u8)*select == 1);
    printf("local APIC version 0x%x, IOAPIC with %u pins\n", version & 0xff, (pins & 0xff) + 1);
}

int main(void) {
    u32 count = (u32)HOST_PAGE->vcpus;
    u64 reason;
    validate_memory();
    make_shared(GHCBS, MAX_PROCESSORS);
    /* One 2 MiB mapping less to split while they run. */
    make_shared(AREA, 1);
    make_private(AREA, 1);
    if (count > MAX_PROCESSORS) {
        printf("processors: %u, at most %u\n", count, MAX_PROCESSORS);
        return 2;
    }
    u32 a, b, c, d;
    cpuid(1, 0, &a, &b, &c, &d);
    if (!(c & 1u << 21)) {
        puts("no local APIC with x2APIC: run with --irqchip split");
        return 2;
    }
    mmio();
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | X2APIC_ENABLE);
    printf("snp-smp: %u processors, host features 0x%lx\n", count, ghcb_msr(0x80) >> 12);
    if (count > 1) refusals(count);

    /* INIT and SIPI start them with what was measured: they wait in AP reset hold for what the guest makes of them. */
    for (u32 i = 1; i < count; i++) {
        send(i, INIT);
        send(i, STARTUP);
        prepare(i, 0);
        expect("created", i, create(CREATE, i, (u64)vmsas[i][0], vmsa_features(), &reason) == 0);
    }
    for (u32 i = 1; i < count; i++) wait(&processors[i].starts, 1);
    printf("created: %u\n", count - 1);

    for (u32 i = 1; i < count; i++) processors[i].command = WORK;
    processors[0].vcpu.index = 0;
    convert_and_check(&processors[0]);
    for (u32 i = 1; i < count; i++) wait(&processors[i].done, 1);
    puts("worked beside each other");

    /* A processor that holds goes on where it was, at INIT and SIPI. */
    for (u32 i = 1; i < count; i++) {
        processors[i].command = HOLD;
        for (int turn = 0; turn < 200; turn++) relax();
        expect("holds", i, processors[i].done == 1);
        send(i, INIT);
        send(i, STARTUP);
        wait(&processors[i].done, 2);
    }
    puts("held and went on");

    for (u32 i = 1; i < count; i++) destroy(i);
    puts("destroyed");

    /* Anew, with another VMSA, at INIT and not before. */
    for (u32 i = 1; i < count; i++) {
        prepare(i, 1);
        expect("created on INIT", i, create(CREATE_ON_INIT, i, (u64)vmsas[i][1], vmsa_features(), &reason) == 0);
        for (int turn = 0; turn < 200; turn++) relax();
        expect("waits for INIT", i, processors[i].starts == 1);
        send(i, INIT);
        send(i, STARTUP);
        wait(&processors[i].starts, 2);
    }
    for (u32 i = 1; i < count; i++) processors[i].command = WORK;
    for (u32 i = 1; i < count; i++) wait(&processors[i].done, 3);
    puts("created anew, worked again");

    for (u32 i = 0; i < count; i++) expect("its own checks", i, processors[i].failures == 0);
    puts(failures == 0 ? "snp-smp: all as it should be" : "snp-smp: FAILED");
    return failures == 0 ? 0 : 1;
}
