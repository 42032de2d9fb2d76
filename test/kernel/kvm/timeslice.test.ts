/** Timeslices: how long a vCPU runs before KVM_RUN is interrupted, and what a seed makes of it. */
import { describe, expect, it } from 'vitest';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { createKernel } from '../../../src/kernel/kvm/index.ts';
import { nextTimeslice } from '../../../src/kernel/kvm/timeslice.ts';
import { GuestProgram } from './guest-program.ts';
import { Guest } from './spec-run.ts';
import { Subject } from './spec-subject.ts';

const EINTR = -4;

/** Instructions that a guest that loops for ever runs in each of `count` turns of about 1000. */
function turns(count: number, seed?: number): number[] {
  const kernel = createKernel({
    memory: 16 * 1024 * 1024,
    timeslice: 1000,
    ...(seed === undefined ? {} : { turns: seededEntropy(seed) }),
  });
  const subject = new Subject(kernel.newProcess(), () => kernel.close());
  const { vcpu } = new Guest(subject, new GuestProgram().forever());
  const lengths: number[] = [];
  for (let before = 0; lengths.length < count; before = vcpu.instructions) {
    expect(vcpu.run()).toBe(EINTR);
    lengths.push(vcpu.instructions - before);
  }
  subject.close();
  return lengths;
}

describe('timeslices', () => {
  it('are alike without a seed', () => {
    expect(turns(5)).toEqual([1000, 1000, 1000, 1000, 1000]);
  });

  it('repeat with a seed, and lie between 16 and twice the length', () => {
    const first = turns(40, 7);
    expect(turns(40, 7)).toEqual(first);
    expect(Math.min(...first)).toBeGreaterThanOrEqual(16);
    expect(Math.max(...first)).toBeLessThan(2000);
    expect(new Set(first).size).toBeGreaterThan(20);
  });

  it('are others with another seed', () => {
    expect(turns(5, 8)).not.toEqual(turns(5, 7));
  });

  it.each([
    [0, 0, 0],
    [15, 15, 15],
    [16, 16, 31],
    [31, 16, 31],
    [32, 16, 63],
  ])('of %i instructions are drawn from %i to %i', (length, least, most) => {
    const entropy = seededEntropy(1);
    const drawn = Array.from({ length: 2000 }, () => nextTimeslice(length, entropy));
    expect([Math.min(...drawn), Math.max(...drawn)]).toEqual([least, most]);
  });
});

it('a guest that takes exceptions for ever and retires nothing is interrupted all the same', () => {
  const kernel = createKernel({ memory: 4 << 20, timeslice: 50 });
  const process = kernel.newProcess();
  const vm = process.openKvm().createVm(0);
  const at = process.memory.mmap({ length: 0x10000, protection: 3, flags: 0x22 });
  vm.setUserMemoryRegion({
    slot: 0,
    flags: 0,
    guestPhysAddr: 0n,
    memorySize: 0x10000n,
    userspaceAddr: BigInt(at),
  });
  const image = new DataView(new ArrayBuffer(0x10000));
  image.setBigUint64(0x1000, 0x2007n, true);
  image.setBigUint64(0x2000, 0x87n, true);
  // #UD's gate leads to ud2.
  image.setBigUint64(0x3000 + 6 * 16, 0x0000_8e00_0008_0500n, true);
  image.setBigUint64(0x4008, 0x00af_9a00_0000_ffffn, true);
  image.setUint16(0x500, 0x0b0f, true);
  process.memory.write(at, new Uint8Array(image.buffer));
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid2(process.openKvm().getSupportedCpuid());
  const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
  vcpu.setSregs({
    ...vcpu.getSregs(),
    cs: { ...flat, selector: 8, type: 11, db: 0, l: 1 },
    ss: { ...flat, selector: 16, type: 3, db: 1, l: 0 },
    gdt: { base: 0x4000n, limit: 0xf },
    idt: { base: 0x3000n, limit: 0xfff },
    cr0: 0x80010033n,
    cr3: 0x1000n,
    cr4: 0x20n,
    efer: 0xd00n,
  });
  vcpu.setRegs({ ...vcpu.getRegs(), rip: 0x500n, rsp: 0xf000n, rflags: 2n });
  expect([vcpu.run(), vcpu.run()]).toEqual([-4, -4]);
  expect(vcpu.getRegs().rip).toBe(0x500n);
  kernel.close();
});
