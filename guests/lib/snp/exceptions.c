/*
 * Exceptions: #VC to its handler, those that a caller expects to where it wants to go on, and the end of the run with words for all others.
 */
#pragma GCC target("general-regs-only")
#include "snp/snp.h"

#define VECTOR_VC 29

extern const u64 exception_entries[32];
void snp_vc(struct frame *frame);
void snp_exception(struct frame *frame);
void snp_deliver(struct frame *frame, u32 vector, u32 error);
void snp_start(void);

static struct {
    u64 low, high;
} gates[32];
static struct vcpu first;

static void set_gates(void) {
    for (unsigned i = 0; i < 32; i++) {
        u64 entry = exception_entries[i];
        gates[i].low = (entry & 0xffff) | 8ul << 16 | 0x8e00ul << 32 | (entry >> 16 & 0xffff) << 48;
        gates[i].high = entry >> 32;
    }
}

void load_gates(void) {
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) pointer = {sizeof gates - 1, (u64)gates};
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

/* Before main: exceptions, then the GHCB. SEV_STATUS is the hardware's own word. Ends the run where the host does not speak version 2 or is no host of SNP guests. */
void snp_start(void) {
    set_gates();
    load_gates();
    set_this_vcpu(&first);
    u64 status;
    if (rdmsr_safe(SEV_STATUS, &status) != 0 || !(status & SEV_STATUS_SNP)) {
        puts("no SNP guest: run with --type sev-snp");
        exit(2);
    }
    u64 info = ghcb_msr(2);
    if ((info & 0xfff) != 1 || info >> 48 < 2 || (info >> 32 & 0xffff) > 2) terminate(0, 1);
    u64 features = ghcb_msr(0x80);
    if ((features & 0xfff) != 0x81 || (features >> 12 & 1) == 0) terminate(0, 2);
    ghcb_register(&first, (u8 *)BOOT_GHCB);
    ram_top = HOST_PAGE->memory;
}

/* An exception that the frame's instruction raises: the CPU's, or one that the host asked for. */
void snp_deliver(struct frame *frame, u32 vector, u32 error) {
    struct vcpu *vcpu = this_vcpu();
    if (vcpu->resume != 0) {
        frame->rip = vcpu->resume;
        vcpu->resume = 0;
        vcpu->vector = vector;
        vcpu->error = error;
        return;
    }
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    printf("exception %u, error 0x%x, at 0x%lx, CR2 0x%lx\n", vector, error, frame->rip, address);
    terminate(0, 0);
}

void snp_exception(struct frame *frame) {
    if (frame->vector == VECTOR_VC) snp_vc(frame);
    else snp_deliver(frame, (u32)frame->vector, (u32)frame->error);
}

int rdmsr_safe(u32 msr, u64 *value) {
    struct vcpu *vcpu = this_vcpu();
    u32 low = 0, high = 0;
    vcpu->vector = 0;
    __asm__ volatile("leaq 1f(%%rip), %%rax\n\tmovq %%rax, %0\n\trdmsr\n1:"
                     : "=m"(vcpu->resume), "=&a"(low), "=d"(high)
                     : "c"(msr)
                     : "memory");
    vcpu->resume = 0;
    *value = low | (u64)high << 32;
    return (int)vcpu->vector;
}

int wrmsr_safe(u32 msr, u64 value) {
    struct vcpu *vcpu = this_vcpu();
    vcpu->vector = 0;
    __asm__ volatile("leaq 1f(%%rip), %%r8\n\tmovq %%r8, %0\n\twrmsr\n1:"
                     : "=m"(vcpu->resume)
                     : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32))
                     : "memory", "r8");
    vcpu->resume = 0;
    return (int)vcpu->vector;
}
