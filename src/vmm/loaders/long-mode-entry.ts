/**
 * The state in which a vCPU enters an image that no firmware starts: 64-bit mode at CPL 0 with paging, flat segments, interrupts
 * off and no IDT.
 */
import { CR0, CR4, EFER } from '../../abi/x86.ts';
import type { Regs, Segment, Sregs } from '../../kernel/interface.ts';

/** The GDT that the segments below are from: null, 64-bit code, data. */
export const GDT_ENTRIES = [0n, 0x00af_9b00_0000_ffffn, 0x00cf_9300_0000_ffffn] as const;
const CODE_SELECTOR = 0x08;
const DATA_SELECTOR = 0x10;

/** General registers: RIP, the vCPU's index in EDI, others 0. */
export function longModeRegs(rip: number, index: number): Regs {
  return {
    ...{ rax: 0n, rbx: 0n, rcx: 0n, rdx: 0n, rsi: 0n, rdi: BigInt(index), rsp: 0n, rbp: 0n },
    ...{ r8: 0n, r9: 0n, r10: 0n, r11: 0n, r12: 0n, r13: 0n, r14: 0n, r15: 0n },
    rip: BigInt(rip),
    rflags: 2n,
  };
}

/** Control registers and segments; what they do not set stays as in `reset`. Both addresses are guest-physical. */
export function longModeSregs(reset: Sregs, at: { readonly gdt: number; readonly tables: number }): Sregs {
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
  const code: Segment = { ...flat, selector: CODE_SELECTOR, type: 0xb, db: 0, l: 1 };
  const data: Segment = { ...flat, selector: DATA_SELECTOR, type: 0x3, db: 1, l: 0 };
  const system = { ...flat, selector: 0, limit: 0xffff, s: 0, g: 0, db: 0, l: 0 };
  return {
    ...reset,
    cs: code,
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
    tr: { ...system, type: 0xb },
    ldt: { ...system, type: 0x2 },
    gdt: { base: BigInt(at.gdt), limit: 8 * GDT_ENTRIES.length - 1 },
    idt: { base: 0n, limit: 0 },
    cr0: BigInt((CR0.PE | CR0.MP | CR0.ET | CR0.NE | CR0.WP | CR0.PG) >>> 0),
    cr2: 0n,
    cr3: BigInt(at.tables),
    cr4: BigInt(CR4.PAE | CR4.OSFXSR | CR4.OSXMMEXCPT),
    efer: BigInt(EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE),
  };
}
