/*
 * What an SNP guest here may count on beyond guest.h: a GHCB for each vCPU, a #VC handler that makes CPUID, port I/O, MSRs, RDTSC and MMIO work as anywhere, and pages
 * validated and converted. The boot area is the VMM's (src/vmm/loaders/snp-boot.ts); the protocol is AMD's "SEV-ES Guest-Hypervisor Communication Block
 * Standardization", version 2; the rules for what a guest may believe are those of Linux arch/x86/coco/sev.
 */
#ifndef SNP_H
#define SNP_H

#include "guest.h"

#define BOOT_TABLES 0x2000ul
#define BOOT_SECRETS 0x9000ul
#define BOOT_GHCB 0xa000ul
#define BOOT_HOST_PAGE 0xb000ul
#define BOOT_CPUID 0xd000ul
#define C_BIT (1ul << 51)
#define LARGE_PAGE (2 * MIB)

/* What the host has to say: not measured, so nothing here may be trusted. */
struct host_page {
    u64 memory, vcpus, guest_data_size, reserved[5];
    u8 guest_data[64];
};
#define HOST_PAGE ((volatile struct host_page *)BOOT_HOST_PAGE)

struct cpuid_entry {
    u32 leaf, sub;
    u64 xcr0, xss;
    u32 a, b, c, d;
    u64 reserved;
};
struct cpuid_table {
    u32 count, reserved0;
    u64 reserved1;
    struct cpuid_entry entries[64];
};
#define CPUID_TABLE ((const struct cpuid_table *)BOOT_CPUID)

/* General registers by their numbers, and what the CPU pushed. */
struct frame {
    u64 gpr[16];
    u64 vector, error, rip, cs, rflags, rsp, ss;
};
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI };

struct vcpu {
    u8 *ghcb;
    u32 index;
    /* Where to go on after an exception that is expected; 0: none is. */
    u64 resume;
    /* The exception that came in its place. */
    u32 vector, error;
};
struct vcpu *this_vcpu(void);
void set_this_vcpu(struct vcpu *vcpu);

/* Offsets in the GHCB. */
#define GHCB_CPL 0xcb
#define GHCB_RAX 0x1f8
#define GHCB_RCX 0x308
#define GHCB_RDX 0x310
#define GHCB_RBX 0x318
#define GHCB_CODE 0x390
#define GHCB_INFO1 0x398
#define GHCB_INFO2 0x3a0
#define GHCB_SCRATCH 0x3a8
#define GHCB_XCR0 0x3e8
#define GHCB_VALID 0x3f0
#define GHCB_BUFFER 0x800
#define GHCB_BUFFER_SIZE 0x7f0ul
#define GHCB_VERSION 0xffa

#define EVENT_RDTSC 0x6e
#define EVENT_CPUID 0x72
#define EVENT_IOIO 0x7b
#define EVENT_MSR 0x7c
#define EVENT_VMMCALL 0x81
#define EVENT_RDTSCP 0x87
#define EVENT_WBINVD 0x89
#define EVENT_NPF 0x400
#define EVENT_MMIO_READ 0x80000001ul
#define EVENT_MMIO_WRITE 0x80000002ul
#define EVENT_AP_RESET_HOLD 0x80000004ul
#define EVENT_PAGE_STATE_CHANGE 0x80000010ul
#define EVENT_GUEST_REQUEST 0x80000011ul
#define EVENT_EXTENDED_GUEST_REQUEST 0x80000012ul
#define EVENT_AP_CREATION 0x80000013ul
#define EVENT_HYPERVISOR_FEATURES 0x8000fffdul

#define SEV_STATUS 0xc0010131
#define SEV_STATUS_SNP 4

/* Reasons of a termination request: set 1, Linux'. */
enum { END_REGISTER, END_PAGE_STATE, END_PVALIDATE, END_NOT_VMPL0, END_CPUID };
void terminate(unsigned set, unsigned code) __attribute__((noreturn));

/* One exchange of the MSR protocol. */
u64 ghcb_msr(u64 request);
/* Tells the host that the page is this vCPU's GHCB. */
void ghcb_register(struct vcpu *vcpu, u8 *page);
/* A field of the next event. */
void ghcb_set(unsigned offset, u64 value);
u64 ghcb_get(unsigned offset);
/* One event. What the host said: 0, 1 (raise the exception in INFO2), 2 (it finds the request malformed). */
u32 ghcb_event(u64 code, u64 info1, u64 info2);

/* Makes all RAM usable that the launch left out. Returns how many pages of 4 KiB. */
u64 validate_memory(void);
/* Converts `pages` of 4 KiB from `start` on and maps them so. What was in them is lost. */
void make_shared(u64 start, u64 pages);
void make_private(u64 start, u64 pages);
/* Maps without or with the C-bit and changes nothing else: for MMIO. */
void map_shared(u64 start, u64 pages);
/* PVALIDATE: its code, or -1 where the page was so already. */
int pvalidate(u64 address, int large, int validate);
/* RMPADJUST of a 4 KiB page: its code. */
u64 rmpadjust(u64 address, u64 attributes);
#define RMPADJUST_VMSA (1ul << 16)

/* MSR accesses that may fail: 0, or the exception's vector. */
int rdmsr_safe(u32 msr, u64 *value);
int wrmsr_safe(u32 msr, u64 value);

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

#endif
