/** Timeslices: how long a vCPU runs before KVM_RUN is interrupted, and what a seed makes of it. */
import { describe, expect, it } from 'vitest';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { createKernel } from '../../../src/kernel/kvm/index.ts';
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
});
