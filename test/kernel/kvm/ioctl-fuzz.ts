/**
 * Calls of kernel/interface.ts with any field, any value, in any order, over several VMs of each type, on one machine with three bystanders. Whatever is asked, the answer
 * is a declared one: a result, a LinuxError, or a NotImplementedError that names what is missing. A seed repeats the calls. Which calls there are, and with which arguments, is
 * in fuzz-*-calls.ts.
 */
import { expect } from 'vitest';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Chip } from '../../../src/hardware/chip.ts';
import { createKernel, type Kernel, type Personality } from '../../../src/kernel/kvm/index.ts';
import { Bystander } from './fuzz-bystander.ts';
import { kvmCalls } from './fuzz-kvm-calls.ts';
import { type FuzzCounts, FuzzLog } from './fuzz-log.ts';
import { processCalls } from './fuzz-process-calls.ts';
import { type Action, FuzzSubject } from './fuzz-subject.ts';
import { FuzzValues } from './fuzz-values.ts';
import { vcpuCalls } from './fuzz-vcpu-calls.ts';
import { vmCalls } from './fuzz-vm-calls.ts';

const CALLS_BETWEEN_CHECKS = 256;

export class IoctlFuzz {
  readonly #values: FuzzValues;
  readonly #log = new FuzzLog();
  readonly #kernel: Kernel;
  readonly #bystanders: Bystander[];
  readonly #subject: FuzzSubject;
  readonly #framesBefore: ReadonlyMap<string, number>;
  readonly #actions: readonly Action[];
  readonly #weights: number;

  constructor(options: { seed: number; kernel: Personality }) {
    const { seed } = options;
    this.#values = new FuzzValues(seed);
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(3) });
    const hasSev = seed % 4 !== 3;
    this.#kernel = createKernel({
      memory: 48 << 20,
      kernel: options.kernel,
      timeslice: 200,
      turns: seededEntropy(seed),
      gmemHuge: seed % 2 === 1,
      entropy: seededEntropy(seed + 1),
      ...(hasSev && { chip }),
    });
    const others = this.#kernel.newProcess('bystanders');
    this.#bystanders = [new Bystander(others, 'default'), new Bystander(others, 'sw-protected')];
    if (hasSev) this.#bystanders.push(new Bystander(others, 'sev-snp'));
    this.#framesBefore = this.#kernel.memory.usage();
    const process = this.#kernel.newProcess('fuzzed');
    const neighbour = new Bystander(process, 'sw-protected');
    this.#subject = new FuzzSubject(this.#values, this.#log, process, neighbour);
    this.#actions = [processCalls, kvmCalls, vmCalls, vcpuCalls].flatMap((calls) => calls(this.#subject));
    this.#weights = this.#actions.reduce((sum, [weight]) => sum + weight, 0);
  }

  get counts(): FuzzCounts {
    return this.#log.counts;
  }

  /** Makes `calls` calls. */
  run(calls: number): void {
    const end = this.counts.calls + calls;
    while (this.counts.calls < end) {
      let left = this.#values.below(this.#weights);
      const action = this.#actions.find(([weight]) => {
        left -= weight;
        return left < 0;
      })!;
      action[1]();
      if (this.counts.calls % CALLS_BETWEEN_CHECKS === 0) this.#checkBystanders();
    }
  }

  /** Ends the fuzzed process: nothing of it is left, and the bystanders go on. */
  close(): void {
    this.#checkBystanders();
    this.#subject.process.exit();
    for (const bystander of this.#bystanders) bystander.check();
    expect(sorted(this.#kernel.memory.usage())).toEqual(sorted(this.#framesBefore));
    expect(this.#kernel.psp?.leakedPages ?? 0).toBe(0);
    this.#kernel.close();
  }

  #checkBystanders(): void {
    this.#log.explained(() => {
      for (const bystander of [...this.#bystanders, this.#subject.neighbour]) bystander.check();
    });
  }
}

const sorted = (usage: ReadonlyMap<string, number>): [string, number][] =>
  [...usage].filter(([, frames]) => frames > 0).sort(([a], [b]) => (a < b ? -1 : 1));
