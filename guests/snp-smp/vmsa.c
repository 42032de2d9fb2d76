/*
 * A VMSA for another processor, as the guest makes it: 64-bit mode at CPL 0 with the boot processor's tables (AMD64 APM volume 2, table B-4; Linux arch/x86/coco/sev,
 * wakeup_cpu_via_vmgexit).
 */
#include "vmsa.h"

static void put(u8 *page, unsigned offset, u64 value) { *(u64 *)(page + offset) = value; }

static void segment(u8 *page, unsigned offset, u16 selector, u16 attributes, u32 limit, u64 base) {
    *(u16 *)(page + offset) = selector;
    *(u16 *)(page + offset + 2) = attributes;
    *(u32 *)(page + offset + 4) = limit;
    put(page, offset + 8, base);
}

u64 vmsa_features(void) { return rdmsr(SEV_STATUS) >> 2; }

void vmsa_fill(u8 *page, u64 entry, u64 stack, struct vcpu *vcpu) {
    u64 cr0, cr3, cr4;
    __asm__("mov %%cr0, %0\n\tmov %%cr3, %1\n\tmov %%cr4, %2" : "=r"(cr0), "=r"(cr3), "=r"(cr4));
    memset(page, 0, PAGE);
    segment(page, 0x00, 0x10, 0xc93, 0xffffffff, 0);
    segment(page, 0x10, 0x08, 0xa9b, 0xffffffff, 0);
    segment(page, 0x20, 0x10, 0xc93, 0xffffffff, 0);
    segment(page, 0x30, 0x10, 0xc93, 0xffffffff, 0);
    segment(page, 0x40, 0x10, 0xc93, 0xffffffff, 0);
    segment(page, 0x50, 0x10, 0xc93, 0xffffffff, (u64)vcpu);
    segment(page, 0x60, 0, 0, 0x17, 0x1000);
    segment(page, 0x70, 0, 0x82, 0xffff, 0);
    segment(page, 0x90, 0, 0x8b, 0xffff, 0);
    /* SVME: no VMSA runs without. */
    put(page, 0xd0, 0x1d01);
    put(page, 0x148, cr4);
    put(page, 0x150, cr3);
    put(page, 0x158, cr0);
    put(page, 0x160, 0x400);
    put(page, 0x168, 0xffff0ff0);
    put(page, 0x170, 2);
    put(page, 0x178, entry);
    put(page, 0x1d8, stack);
    put(page, 0x268, 0x0007040600070406);
    put(page, 0x3b0, vmsa_features());
    put(page, 0x3e8, 1);
    *(u32 *)(page + 0x408) = 0x1f80;
    *(u16 *)(page + 0x410) = 0x37f;
}

/* RMPADJUST asks for permissions of a lesser VMPL along with the VMSA bit; VMPL1 gets none. */
u64 vmsa_declare(u8 *page, int is_vmsa) { return rmpadjust((u64)page, 1ul << 0 | (is_vmsa ? RMPADJUST_VMSA : 0)); }
