/** A vCPU about to run 64-bit code at CPL 0 with flat segments and interrupts off; what is not named stays as it is. Takes what the machine's own KVM takes too. */
import type { KvmVcpu, Regs } from '../../src/kernel/interface.ts';

/** `cr3`: the guest's page tables. */
export function enterLongMode(vcpu: KvmVcpu, cr3: number, regs: Partial<Regs>): void {
  const flat = { base: 0n, limit: 0xffff_ffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
  const data = { ...flat, selector: 0x10, type: 3, db: 1, l: 0 };
  vcpu.setSregs({
    ...vcpu.getSregs(),
    ...{ cs: { ...flat, selector: 8, type: 11, db: 0, l: 1 }, ds: data, es: data, ss: data },
    ...{ cr0: 0x8005_0033n, cr3: BigInt(cr3), cr4: 0x620n, efer: 0xd00n },
  });
  vcpu.setRegs({ ...vcpu.getRegs(), rflags: 2n, ...regs });
}
