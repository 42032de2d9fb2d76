/**
 * A vCPU's registers in its VMCB, as KVM_GET/SET_REGS and KVM_GET/SET_SREGS show them, the state of a new vCPU and the state after INIT
 * (Linux arch/x86/kvm/x86.c, kvm_vcpu_reset, __set_sregs; svm.c, svm_get_segment; reference svm.md 7.4).
 *
 * Checks that depend on the guest's CPUID begin with KVM_SET_CPUID2, as in Linux. Left out: SREGS2 and PDPTEs.
 */
import { SAVE, SEGMENT } from '../../abi/vmcb.ts';
import { CR0, CR4, EFER, PAT_DEFAULT, RFLAGS } from '../../abi/x86.ts';
import { LinuxError } from '../../base/errors.ts';
import { GPR } from '../../hardware/cpu/state.ts';
import type { DescriptorTable, Regs, Segment, Sregs } from '../interface.ts';
import type { GuestCpuid } from './cpuid.ts';
import { apicBaseIsValid } from './lapic/apic-base.ts';
import type { Vmcb } from './svm/vmcb.ts';

const GPR_NAMES = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
] as const;

/** What of a vCPU is neither in the VMCB nor among the general registers. */
export interface OtherRegisters {
  cr8: number;
  apicBase: bigint;
}

/** u64s of rax … r15, of which rax and rsp are ignored in favour of the VMCB's. */
export function getRegs(vmcb: Vmcb, gpr: BigUint64Array): Regs {
  const regs = { rip: vmcb.save(SAVE.RIP), rflags: vmcb.save(SAVE.RFLAGS) } as Regs;
  for (const [i, name] of GPR_NAMES.entries()) regs[name] = gpr[i]!;
  regs.rax = vmcb.save(SAVE.RAX);
  regs.rsp = vmcb.save(SAVE.RSP);
  return regs;
}

export function setRegs(vmcb: Vmcb, gpr: BigUint64Array, regs: Regs): void {
  for (const [i, name] of GPR_NAMES.entries()) gpr[i] = regs[name];
  vmcb.setSave(SAVE.RAX, regs.rax);
  vmcb.setSave(SAVE.RSP, regs.rsp);
  vmcb.setSave(SAVE.RIP, regs.rip);
  vmcb.setSave(SAVE.RFLAGS, regs.rflags | BigInt(RFLAGS.FIXED));
}

const ATTRIB_P = 1 << 7;
const ATTRIB_S = 1 << 4;
const CODE = 0xa;
const DATA = 0x2;
const LDT = 2;
const BUSY_TSS16 = 3;

/** The registers of a new vCPU (`power-on`), or after INIT, which keeps CD and NW. */
export function resetRegisters(
  vmcb: Vmcb,
  gpr: BigUint64Array,
  event: { kind: 'power-on' } | { kind: 'init'; oldCr0: bigint; signature: number },
): void {
  gpr.fill(0n);
  gpr[GPR.RDX] = event.kind === 'init' ? BigInt(event.signature) : 0x600n;
  const segment = (field: number, type: number, base = 0, selector = 0): void =>
    setRawSegment(vmcb, field, selector, type | ATTRIB_S | ATTRIB_P, 0xffff, BigInt(base));
  segment(SAVE.CS, CODE, 0xffff0000, 0xf000);
  for (const field of [SAVE.DS, SAVE.ES, SAVE.FS, SAVE.GS, SAVE.SS]) segment(field, DATA);
  setRawSegment(vmcb, SAVE.LDTR, 0, LDT | ATTRIB_P, 0xffff, 0n);
  setRawSegment(vmcb, SAVE.TR, 0, BUSY_TSS16 | ATTRIB_P, 0xffff, 0n);
  setRawSegment(vmcb, SAVE.GDTR, 0, 0, 0xffff, 0n);
  setRawSegment(vmcb, SAVE.IDTR, 0, 0, 0xffff, 0n);
  setCpl(vmcb, 0);
  const kept = event.kind === 'init' ? event.oldCr0 & BigInt((CR0.CD | CR0.NW) >>> 0) : 0x6000_0000n;
  vmcb.setSave(SAVE.CR0, 0x10n | kept);
  for (const field of [SAVE.CR2, SAVE.CR3, SAVE.CR4, SAVE.RAX, SAVE.RSP]) vmcb.setSave(field, 0n);
  vmcb.setSave(SAVE.EFER, BigInt(EFER.SVME));
  vmcb.setSave(SAVE.RIP, 0xfff0n);
  vmcb.setSave(SAVE.RFLAGS, BigInt(RFLAGS.FIXED));
  vmcb.setSave(SAVE.DR6, 0xffff0ff0n);
  vmcb.setSave(SAVE.DR7, 0x400n);
  if (event.kind === 'power-on') vmcb.setSave(SAVE.G_PAT, PAT_DEFAULT);
}

/** All but the interrupt that waits, which is the caller's. */
export function getSregs(vmcb: Vmcb, other: OtherRegisters): Sregs {
  const data = (field: number): Segment => {
    const segment = getSegment(vmcb, field);
    if (segment.unusable === 0) segment.type |= 1;
    return segment;
  };
  const ss = getSegment(vmcb, SAVE.SS);
  if (ss.unusable === 1) ss.db = 0;
  ss.dpl = vmcb.cpl;
  const tr = getSegment(vmcb, SAVE.TR);
  tr.type |= 2;
  return {
    cs: getSegment(vmcb, SAVE.CS),
    ds: data(SAVE.DS),
    es: data(SAVE.ES),
    fs: data(SAVE.FS),
    gs: data(SAVE.GS),
    ss,
    tr,
    ldt: getSegment(vmcb, SAVE.LDTR),
    gdt: getTable(vmcb, SAVE.GDTR),
    idt: getTable(vmcb, SAVE.IDTR),
    cr0: vmcb.save(SAVE.CR0),
    cr2: vmcb.save(SAVE.CR2),
    cr3: vmcb.save(SAVE.CR3),
    cr4: vmcb.save(SAVE.CR4),
    cr8: BigInt(other.cr8),
    efer: vmcb.save(SAVE.EFER) & ~BigInt(EFER.SVME),
    apicBase: other.apicBase,
    interruptBitmap: [0n, 0n, 0n, 0n],
  };
}

/** Whose registers they are. */
interface SregsOwner {
  readonly cpuid: GuestCpuid;
  isLegalGpa(gpa: bigint): boolean;
}

/** All but CR8 and the interrupt that is to wait, which are the caller's. Errors: EINVAL, nothing is changed then. */
export function setSregs(vmcb: Vmcb, other: OtherRegisters, sregs: Sregs, owner: SregsOwner): void {
  checkSregs(sregs, other.apicBase, owner);
  const segments = [
    [SAVE.CS, sregs.cs],
    [SAVE.DS, sregs.ds],
    [SAVE.ES, sregs.es],
    [SAVE.FS, sregs.fs],
    [SAVE.GS, sregs.gs],
    [SAVE.SS, sregs.ss],
    [SAVE.TR, sregs.tr],
    [SAVE.LDTR, sregs.ldt],
  ] as const;
  for (const [field, segment] of segments) setSegment(vmcb, field, segment);
  setCpl(vmcb, sregs.ss.dpl & 3);
  setRawSegment(vmcb, SAVE.GDTR, 0, 0, sregs.gdt.limit, sregs.gdt.base);
  setRawSegment(vmcb, SAVE.IDTR, 0, 0, sregs.idt.limit, sregs.idt.base);
  vmcb.setSave(SAVE.CR0, sregs.cr0);
  vmcb.setSave(SAVE.CR2, sregs.cr2);
  vmcb.setSave(SAVE.CR3, sregs.cr3);
  vmcb.setSave(SAVE.CR4, sregs.cr4);
  vmcb.setSave(SAVE.EFER, sregs.efer | BigInt(EFER.SVME));
  other.apicBase = sregs.apicBase;
}

const bits = (...values: readonly number[]): bigint =>
  values.reduce((all, bit) => all | BigInt(bit >>> 0), 0n);
const CR0_PG = bits(CR0.PG);
const EFER_KNOWN = bits(EFER.SCE, EFER.LME, EFER.LMA, EFER.NXE, EFER.SVME, EFER.FFXSR);
const CR4_KNOWN = bits(
  0x7ff, // VME … OSXMMEXCPT
  CR4.UMIP,
  CR4.LA57,
  CR4.FSGSBASE,
  CR4.PCIDE,
  CR4.OSXSAVE,
  CR4.SMEP,
  CR4.SMAP,
  CR4.PKE,
);

function checkSregs(sregs: Sregs, oldApicBase: bigint, owner: SregsOwner): void {
  const { cpuid } = owner;
  const { cr0, cr3, cr4, efer } = sregs;
  const hex = (value: bigint): string => `0x${value.toString(16)}`;
  if ((efer & BigInt(EFER.LME)) !== 0n && (cr0 & CR0_PG) !== 0n) {
    if ((cr4 & BigInt(CR4.PAE)) === 0n) invalid(`cr4 ${hex(cr4)}: long mode wants PAE`);
    if ((efer & BigInt(EFER.LMA)) === 0n) invalid(`efer ${hex(efer)}: LME with paging wants LMA`);
    if (!owner.isLegalGpa(cr3)) invalid(`cr3 ${hex(cr3)}: more than ${cpuid.physicalBits} bits`);
  } else {
    if ((efer & BigInt(EFER.LMA)) !== 0n) invalid(`efer ${hex(efer)}: LMA wants LME and CR0.PG`);
    if (sregs.cs.l !== 0) invalid('cs.l: 1 outside long mode');
  }
  if ((cr4 & ~CR4_KNOWN) !== 0n || (cr4 & cpuid.reservedCr4Bits) !== 0n)
    invalid(`cr4 ${hex(cr4)}: reserved bits`);
  if (cr0 >> 32n !== 0n) invalid(`cr0 ${hex(cr0)}: bits above 31`);
  if ((cr0 & bits(CR0.NW)) !== 0n && (cr0 & bits(CR0.CD)) === 0n) invalid(`cr0 ${hex(cr0)}: NW without CD`);
  if ((cr0 & CR0_PG) !== 0n && (cr0 & bits(CR0.PE)) === 0n) invalid(`cr0 ${hex(cr0)}: PG without PE`);
  if ((efer & ~EFER_KNOWN) !== 0n || (efer & cpuid.reservedEferBits) !== 0n)
    invalid(`efer ${hex(efer)}: bits that the guest's CPUID does not have`);
  const { physicalBits, hasX2apic } = cpuid;
  if (!apicBaseIsValid(oldApicBase, sregs.apicBase, { physicalBits, hasX2apic, by: 'host' }))
    invalid(`apic_base ${hex(sregs.apicBase)}: reserved bits, or x2APIC mode that is not there`);
}

function invalid(what: string): never {
  throw new LinuxError('EINVAL', `KVM_SET_SREGS: ${what}`);
}

function setRawSegment(
  vmcb: Vmcb,
  field: number,
  selector: number,
  attrib: number,
  limit: number,
  base: bigint,
): void {
  vmcb.setSaveWord(field + SEGMENT.SELECTOR, selector | (attrib << 16));
  vmcb.setSaveWord(field + SEGMENT.LIMIT, limit);
  vmcb.setSave(field + SEGMENT.BASE, base);
}

function getSegment(vmcb: Vmcb, field: number): Segment {
  const word = vmcb.saveWord(field + SEGMENT.SELECTOR);
  const attrib = word >>> 16;
  const limit = vmcb.saveWord(field + SEGMENT.LIMIT) >>> 0;
  const present = (attrib >>> 7) & 1;
  return {
    base: vmcb.save(field + SEGMENT.BASE),
    limit,
    selector: word & 0xffff,
    type: attrib & 15,
    s: (attrib >>> 4) & 1,
    dpl: (attrib >>> 5) & 3,
    present,
    avl: (attrib >>> 8) & 1,
    l: (attrib >>> 9) & 1,
    db: (attrib >>> 10) & 1,
    g: limit > 0xfffff ? 1 : 0,
    unusable: 1 - present,
  };
}

function setSegment(vmcb: Vmcb, field: number, segment: Segment): void {
  const present = segment.present !== 0 && segment.unusable === 0 ? 1 : 0;
  const attrib =
    (segment.type & 15) |
    ((segment.s & 1) << 4) |
    ((segment.dpl & 3) << 5) |
    (present << 7) |
    ((segment.avl & 1) << 8) |
    ((segment.l & 1) << 9) |
    ((segment.db & 1) << 10) |
    ((segment.g & 1) << 11);
  setRawSegment(vmcb, field, segment.selector & 0xffff, attrib, segment.limit, segment.base);
}

const getTable = (vmcb: Vmcb, field: number): DescriptorTable => ({
  base: vmcb.save(field + SEGMENT.BASE),
  limit: vmcb.saveWord(field + SEGMENT.LIMIT) & 0xffff,
});

function setCpl(vmcb: Vmcb, cpl: number): void {
  const word = SAVE.CPL & ~3;
  vmcb.setSaveWord(word, (vmcb.saveWord(word) & 0x00ff_ffff) | (cpl << 24));
}
