/**
 * The same spec for two kernels, ours and the real one: rows of what is done through kernel/interface.ts and what comes of it. An opener
 * says how a kernel is reached, what it lacks, and where it is known to differ.
 */
import { describe, expect, it } from 'vitest';
import { LinuxError } from '../../../src/base/errors.ts';
import type { Kvm, KvmVm, Process, UserMemoryRegion2 } from '../../../src/kernel/interface.ts';

/** A process with /dev/kvm open, and one VM, of type DEFAULT unless told otherwise. */
export class Subject {
  readonly process: Process;
  readonly kvm: Kvm;
  readonly vm: KvmVm;
  readonly #closing: (() => void)[] = [];

  constructor(process: Process, end: () => void, type = 0) {
    this.#closing.push(end);
    this.process = process;
    this.kvm = process.openKvm();
    this.#closing.push(() => this.kvm.close());
    this.vm = this.newVm(type);
  }

  /** The same process with a VM of another type. */
  withType(type: number): Subject {
    const other = new Subject(this.process, () => {}, type);
    this.#closing.push(() => other.close());
    return other;
  }

  /** Another VM, closed at the end. */
  newVm(type: number): KvmVm {
    const vm = this.kvm.createVm(type);
    this.#closing.push(() => vm.close());
    return vm;
  }

  /** Calls `close` at the end, last first. */
  atEnd(close: () => void): void {
    this.#closing.push(close);
  }

  /** Anonymous memory of the process. */
  memory(pages: number): number {
    return this.process.memory.mmap({ length: pages * 0x1000, protection: 3, flags: 0x22 });
  }

  /** KVM_SET_USER_MEMORY_REGION2: 16 pages at gpa 0x10000 in slot 1, with no host memory mapped there, unless told otherwise. */
  set(region: Partial<UserMemoryRegion2> = {}, vm: KvmVm = this.vm): void {
    vm.setUserMemoryRegion2({
      slot: 1,
      flags: 0,
      guestPhysAddr: 0x10000n,
      memorySize: 0x10000n,
      userspaceAddr: 0x10_0000n,
      guestMemfdOffset: 0n,
      guestMemfd: 0,
      ...region,
    });
  }

  /** A guest_memfd of 16 pages unless told otherwise. */
  gmem(request: { size?: bigint; flags?: bigint } = {}, vm: KvmVm = this.vm): number {
    return vm.createGuestMemfd({ size: 0x10000n, flags: 0n, ...request });
  }

  close(): void {
    for (const close of this.#closing.splice(0).reverse()) close();
  }
}

export interface Row {
  readonly title: string;
  /** What a kernel must offer for this row to mean anything. */
  readonly needs?: 'private memory' | 'interrupt windows';
  /** Returns what came of it, or throws LinuxError. */
  readonly act: (subject: Subject) => unknown;
  /** What `act` returns, or the errno's name (with `/SIGNAL`). 'OK': it returns nothing. */
  readonly want: unknown;
}

export interface Spec {
  readonly title: string;
  readonly rows: readonly Row[];
}

export interface Opener {
  readonly name: string;
  open(): Subject;
  /** Why rows that need this cannot be run; undefined: they can. */
  lacks(need: NonNullable<Row['needs']>): string | undefined;
  /** Rows with another outcome on this kernel, by title, each with its reason. */
  readonly differences: Readonly<Record<string, { readonly want: unknown; readonly why: string }>>;
}

function outcome(act: () => unknown): unknown {
  try {
    return act() ?? 'OK';
  } catch (error) {
    if (error instanceof LinuxError) return error.signal ? `${error.code}/${error.signal}` : error.code;
    throw error;
  }
}

/** Runs a spec on a kernel. Rows that it cannot run are skipped; those and the differences are printed with their reason. */
export function describeSpec(spec: Spec, opener: Opener): void {
  describe(`${spec.title}, ${opener.name}`, () => {
    for (const { title, needs, act, want } of spec.rows) {
      it(title, (context) => {
        const lack = needs === undefined ? undefined : opener.lacks(needs);
        if (lack !== undefined) {
          console.log(`skipped: ${spec.title}: ${title}: ${lack}`);
          context.skip(lack);
        }
        const difference = opener.differences[title];
        if (difference !== undefined) console.log(`differs: ${spec.title}: ${title}: ${difference.why}`);
        const subject = opener.open();
        try {
          expect(outcome(() => act(subject))).toEqual(difference === undefined ? want : difference.want);
        } finally {
          subject.close();
        }
      });
    }
  });
}
