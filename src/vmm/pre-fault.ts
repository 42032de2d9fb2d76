/**
 * After a guest asked for private memory it will use it: its pages are mapped before it faults on each (QEMU
 * target/i386/kvm/kvm.c, the MAP_GPA_RANGE exit). Opportunistic: a range that cannot be had is left to the guest's own faults.
 *
 * QEMU tries again for as long as the kernel says EINTR or EAGAIN. Here nobody else runs meanwhile, so tries without progress
 * are counted.
 */
import { LinuxError } from '../base/errors.ts';
import type { KvmVcpu } from '../kernel/interface.ts';

const TRIES = 8;

export function preFault(vcpu: KvmVcpu, start: number, size: number): void {
  let left = { gpa: BigInt(start), size: BigInt(size) };
  for (let tries = 0; left.size > 0n && tries < TRIES; ) {
    try {
      left = vcpu.preFaultMemory({ ...left, flags: 0n });
      tries = 0;
    } catch (error) {
      if (!(error instanceof LinuxError)) throw error;
      if (error.code !== 'EINTR' && error.code !== 'EAGAIN') return;
      tries++;
    }
  }
}
