/**
 * The VMSA that KVM will measure for a vCPU, from the registers that the VMM gave it (Linux arch/x86/kvm/svm/sev.c, sev_es_sync_vmsa; svm.c, svm_set_segment). The VMM
 * cannot see the page itself; this is what it may tell others to expect.
 *
 * Left out: debug registers 0 to 3 and x87 and SSE registers, zero where a guest starts.
 */
import { SAVE } from '../../abi/vmcb.ts';
import { VMSA } from '../../abi/vmsa.ts';
import { CR0, CR4, EFER } from '../../abi/x86.ts';
import type { KvmVcpu, Segment } from '../../kernel/interface.ts';

const SEGMENTS = ['es', 'cs', 'ss', 'ds', 'fs', 'gs'] as const;
const MSR_PAT = 0x277;
const GENERAL = [
  ['rcx', VMSA.RCX],
  ['rdx', VMSA.RDX],
  ['rbx', VMSA.RBX],
  ['rbp', VMSA.RBP],
  ['rsi', VMSA.RSI],
  ['rdi', VMSA.RDI],
  ...([8, 9, 10, 11, 12, 13, 14, 15] as const).map((n) => [`r${n}`, VMSA.R8 + 8 * (n - 8)] as const),
] as const;

/** Of the XSAVE image. */
const MXCSR_IN_XSAVE = 24;

/** The page's 4096 bytes. `features`: SEV_FEATURES of the guest. */
export function expectedVmsa(vcpu: KvmVcpu, features: bigint): Uint8Array {
  const page = new Uint8Array(4096);
  const view = new DataView(page.buffer);
  const regs = vcpu.getRegs();
  const sregs = vcpu.getSregs();
  const fpu = vcpu.getFpu();
  const debug = vcpu.getDebugRegs();
  const put = (offset: number, value: bigint): void => view.setBigUint64(offset, value, true);
  const table = (offset: number, { limit, base }: { limit: number; base: bigint }): void => {
    view.setUint32(offset + 4, limit, true);
    put(offset + 8, base);
  };
  const segment = (offset: number, value: Segment): void => {
    view.setUint16(offset, value.selector, true);
    view.setUint16(offset + 2, attributes(value), true);
    table(offset, value);
  };
  for (const [index, name] of SEGMENTS.entries()) segment(SAVE.ES + 16 * index, sregs[name]);
  table(SAVE.GDTR, sregs.gdt);
  segment(SAVE.LDTR, sregs.ldt);
  table(SAVE.IDTR, sregs.idt);
  segment(SAVE.TR, sregs.tr);
  page[VMSA.CPL] = sregs.ss.dpl;
  put(SAVE.EFER, sregs.efer | BigInt(EFER.SVME));
  put(SAVE.CR4, sregs.cr4 | BigInt(CR4.MCE));
  put(SAVE.CR3, sregs.cr3);
  put(SAVE.CR0, sregs.cr0 & ~BigInt((CR0.CD | CR0.NW) >>> 0));
  put(SAVE.DR7, debug.dr7);
  put(SAVE.DR6, debug.dr6);
  put(SAVE.RFLAGS, regs.rflags);
  put(SAVE.RIP, regs.rip);
  put(SAVE.RSP, regs.rsp);
  put(SAVE.RAX, regs.rax);
  put(SAVE.CR2, sregs.cr2);
  put(SAVE.G_PAT, vcpu.getMsrs([MSR_PAT])[0]?.data ?? 0n);
  for (const [name, offset] of GENERAL) put(offset, regs[name as keyof typeof regs]);
  put(VMSA.SEV_FEATURES, features);
  put(VMSA.XCR0, vcpu.getXcrs().xcrs[0]?.value ?? 1n);
  // KVM_GET_FPU leaves it out.
  view.setUint32(VMSA.MXCSR, new DataView(vcpu.getXsave().buffer).getUint32(MXCSR_IN_XSAVE, true), true);
  view.setUint16(VMSA.X87_FCW, fpu.fcw, true);
  return page;
}

/** SVM's form of a segment's attributes; KVM calls those unusable that are not present. */
const attributes = ({ type, s, dpl, present, avl, l, db, g }: Segment): number =>
  type | (s << 4) | (dpl << 5) | (present << 7) | (avl << 8) | (l << 9) | (db << 10) | (g << 11);
