/*
 * Talking to the host: the MSR protocol, for what comes before there is a GHCB and for the last word, and events by the GHCB page. Used by the #VC handler, hence
 * without SSE registers, and without memset and memcpy, which may use them.
 */
#pragma GCC target("general-regs-only")
#include "snp/snp.h"

#define GHCB_MSR 0xc0010130
#define GS_BASE 0xc0000101
#define VERSION 2

static inline void vmgexit(void) { __asm__ volatile(".byte 0xf3, 0x0f, 0x01, 0xd9" : : : "memory"); }

struct vcpu *this_vcpu(void) { return (struct vcpu *)rdmsr(GS_BASE); }
void set_this_vcpu(struct vcpu *vcpu) { wrmsr(GS_BASE, (u64)vcpu); }

u64 ghcb_msr(u64 request) {
    wrmsr(GHCB_MSR, request);
    vmgexit();
    return rdmsr(GHCB_MSR);
}

void terminate(unsigned set, unsigned code) {
    for (;;) ghcb_msr(0x100 | (u64)set << 12 | (u64)code << 16);
}

void ghcb_register(struct vcpu *vcpu, u8 *page) {
    u64 gpa = (u64)page;
    if (ghcb_msr(gpa | 0x12) != (gpa | 0x13)) terminate(1, END_REGISTER);
    for (unsigned i = 0; i < PAGE / 8; i++) ((volatile u64 *)page)[i] = 0;
    *(volatile u16 *)(page + GHCB_VERSION) = VERSION;
    vcpu->ghcb = page;
}

void ghcb_set(unsigned offset, u64 value) {
    u8 *ghcb = this_vcpu()->ghcb;
    *(volatile u64 *)(ghcb + offset) = value;
    *(volatile u8 *)(ghcb + GHCB_VALID + offset / 64) |= (u8)(1 << (offset / 8 % 8));
}

u64 ghcb_get(unsigned offset) { return *(volatile u64 *)(this_vcpu()->ghcb + offset); }

u32 ghcb_event(u64 code, u64 info1, u64 info2) {
    u8 *ghcb = this_vcpu()->ghcb;
    ghcb_set(GHCB_CODE, code);
    ghcb_set(GHCB_INFO1, info1);
    ghcb_set(GHCB_INFO2, info2);
    wrmsr(GHCB_MSR, (u64)ghcb);
    vmgexit();
    /* The bitmap says what the host gave back; the next event begins with an empty one. */
    *(volatile u64 *)(ghcb + GHCB_VALID) = 0;
    *(volatile u64 *)(ghcb + GHCB_VALID + 8) = 0;
    return *(volatile u32 *)(ghcb + GHCB_INFO1);
}
