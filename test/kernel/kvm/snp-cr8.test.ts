/** CR8 in a guest with protected state: its moves have no exit that KVM could serve; KVM hears of the value afterwards (Linux cr_trap). */
import { expect, it } from 'vitest';
import { Code, hlt, Register, set, store, two } from '../../hardware/cpu/assembler.ts';
import { SHARED, SnpVm } from './snp-bench.ts';

it('an SNP guest sets its task priority, and KVM knows it', () => {
  const snp = new SnpVm().launch([
    set('rax', 9),
    two(Code.Mov_cr_r64, Register.CR8, Register.RAX),
    set('rax', 5),
    two(Code.Mov_cr_r64, Register.CR8, Register.RAX),
    two(Code.Mov_r64_cr, Register.RBX, Register.CR8),
    set('rdi', SHARED),
    store('rdi', 'rbx'),
    hlt(),
  ]);
  expect(snp.vcpu.run()).toBe(0);
  expect(snp.vcpu.kvmRun.exitReason).toBe(5);
  expect(snp.long(SHARED)).toBe(5n);
  expect(snp.vcpu.kvmRun.cr8).toBe(5n);
});
