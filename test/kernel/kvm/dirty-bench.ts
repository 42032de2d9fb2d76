/**
 * A VM by ioctls whose vCPUs run real code on real cores: code and page tables in one slot, and a slot of pages that may be logged.
 * Each guest access is one KVM_RUN (or two, with MMIO) of a few instructions.
 */
import { afterEach } from 'vitest';
import {
  createKernel,
  type Kernel,
  type Personality,
  type Vcpu,
  type Vm,
} from '../../../src/kernel/kvm/index.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { GuestProgram } from './guest-program.ts';

const TABLES = 0x1000;
const CODE = 0x8000;
const STORE = CODE;
const ADD = CODE + 0x40;
const LOAD = CODE + 0x80;
const COPY = CODE + 0xc0;
/** No slot is there. */
const MMIO = 0x3000_0000;
const BASE = 0x10_0000;

export const LOGGED_SLOT = 1;
export const LOGGED_GPA = BASE;

const open: DirtyBench[] = [];
afterEach(() => {
  for (const bench of open.splice(0)) bench.close();
});
/** It is closed when the test is over. */
export function startDirtyBench(options: ConstructorParameters<typeof DirtyBench>[0]): DirtyBench {
  const bench = new DirtyBench(options);
  open.push(bench);
  return bench;
}

export class DirtyBench {
  readonly kernel: Kernel;
  readonly process: Process;
  readonly vm: Vm;
  readonly vcpus: Vcpu[] = [];
  readonly pages: number;
  /** Where the logged slot's memory lies in the process. */
  hva = 0;
  readonly #codeHva: number;

  /** `caps`: enabled before anything else is made. `flags`: of the slot to be logged. */
  constructor(options: {
    pages: number;
    flags?: number;
    kernel?: Personality;
    vcpus?: number;
    caps?: readonly { cap: number; args: bigint[] }[];
  }) {
    this.pages = options.pages;
    this.kernel = createKernel({ memory: 32 * 1024 * 1024, kernel: options.kernel ?? '7.2' });
    this.process = this.kernel.newProcess();
    this.vm = this.process.openKvm().createVm(0) as Vm;
    for (const cap of options.caps ?? []) this.vm.enableCap(cap);
    this.#codeHva = this.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 0x22 });
    this.hva = this.process.memory.mmap({ length: this.pages * 4096, protection: 3, flags: 0x22 });
    this.vm.setUserMemoryRegion({
      slot: 0,
      flags: 0,
      guestPhysAddr: 0n,
      memorySize: 0x1_0000n,
      userspaceAddr: BigInt(this.#codeHva),
    });
    this.setFlags(options.flags ?? 1);
    this.#writeCode();
    for (let id = 0; id < (options.vcpus ?? 1); id++) this.vcpus.push(this.#makeVcpu(id));
  }

  /** Makes or changes the logged slot. */
  setFlags(flags: number, gpa = BASE): void {
    this.vm.setUserMemoryRegion({
      slot: LOGGED_SLOT,
      flags,
      guestPhysAddr: BigInt(gpa),
      memorySize: BigInt(this.pages * 4096),
      userspaceAddr: BigInt(this.hva),
    });
  }

  /** GET_DIRTY_LOG as page numbers. */
  harvest(slot = LOGGED_SLOT): number[] {
    const bitmap = new Int32Array(Math.ceil(this.pages / 64) * 2).fill(-1);
    this.vm.getDirtyLog({ slot, bitmap });
    const pages: number[] = [];
    for (let page = 0; page < bitmap.length * 32; page++)
      if (((bitmap[page >> 5]! >>> (page & 31)) & 1) === 1) pages.push(page);
    return pages;
  }

  /** CLEAR_DIRTY_LOG of those pages, in the range of `numPages` from `firstPage` on. */
  clear(pages: Iterable<number>, firstPage = 0, numPages = this.pages - firstPage): void {
    const bitmap = new Int32Array(Math.ceil(numPages / 64) * 2);
    for (const page of pages) {
      const at = page - firstPage;
      if (at >= 0 && at < bitmap.length * 32) bitmap[at >> 5]! |= 1 << (at & 31);
    }
    this.vm.clearDirtyLog({ slot: LOGGED_SLOT, firstPage: BigInt(firstPage), numPages, bitmap });
  }

  gpa(page: number, offset = 0): bigint {
    return BigInt(BASE + page * 4096 + offset);
  }

  /** The guest stores `value` (8 bytes). Returns what KVM_RUN said and why. */
  write(
    page: number,
    value = 1n,
    options: { vcpu?: number; offset?: number } = {},
  ): { result: number; exit: number } {
    return this.#run(options.vcpu ?? 0, STORE, { rdi: this.gpa(page, options.offset), rax: value });
  }
  /** The guest adds to a word: a read and a write by one instruction. */
  add(page: number, value = 1n, options: { vcpu?: number } = {}): { result: number; exit: number } {
    return this.#run(options.vcpu ?? 0, ADD, { rdi: this.gpa(page), rax: value });
  }
  read(page: number, options: { vcpu?: number } = {}): { result: number; exit: number } {
    return this.#run(options.vcpu ?? 0, LOAD, { rdi: this.gpa(page), rax: 0n });
  }
  /** MOVSQ from a device to memory: KVM emulates it, and its store is KVM's own. */
  copyFromDevice(
    page: number,
    between: () => void = () => {},
    options: { vcpu?: number } = {},
  ): { result: number; exit: number } {
    const vcpu = this.vcpus[options.vcpu ?? 0]!;
    const first = this.#run(options.vcpu ?? 0, COPY, { rsi: BigInt(MMIO), rdi: this.gpa(page) });
    if (first.exit !== 6) return first;
    vcpu.kvmRun.mmioData.fill(0x77);
    between();
    return { result: vcpu.run(), exit: vcpu.kvmRun.exitReason };
  }
  hostWrite(page: number, value: number): void {
    this.process.memory.write((this.hva + page * 4096 + 8) as never, Uint8Array.of(value));
  }
  /** The first 8 bytes of a page, as the process sees them. */
  hostRead(page: number, offset = 0): bigint {
    const bytes = new Uint8Array(8);
    this.process.memory.read((this.hva + page * 4096 + offset) as never, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }
  drop(page: number): void {
    this.process.memory.madvise((this.hva + page * 4096) as never, 4096, 4);
  }

  close(): void {
    this.process.exit();
    const leaks = this.kernel.memory.leaks();
    this.kernel.close();
    if (leaks.length > 0) throw new Error(`frames left: ${JSON.stringify(leaks)}`);
  }

  #run(
    id: number,
    at: number,
    regs: { rdi?: bigint; rsi?: bigint; rax?: bigint },
  ): { result: number; exit: number } {
    const vcpu = this.vcpus[id]!;
    vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(at), rflags: 2n, ...regs });
    return { result: vcpu.run(), exit: vcpu.kvmRun.exitReason };
  }

  #writeCode(): void {
    const put = (at: number, bytes: Uint8Array): void =>
      this.process.memory.write((this.#codeHva + at) as never, bytes);
    const entries = (...values: bigint[]): Uint8Array => new Uint8Array(new BigUint64Array(values).buffer);
    // Identity mapping of 1 GiB, accessed and dirty already.
    put(TABLES, entries(BigInt(TABLES + 0x1000) | 0x67n));
    put(TABLES + 0x1000, entries(0xe7n));
    put(STORE, new GuestProgram().store('rdi', 'rax').hlt().assemble(STORE));
    put(ADD, new GuestProgram().addTo('rdi', 'rax').hlt().assemble(ADD));
    put(LOAD, new GuestProgram().load('rax', 'rdi').hlt().assemble(LOAD));
    put(COPY, new GuestProgram().movsq().hlt().assemble(COPY));
  }

  #makeVcpu(id: number): Vcpu {
    const vcpu = this.vm.createVcpu(id);
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const data = { ...flat, selector: 0x10, type: 3, db: 1, l: 0 };
    vcpu.setSregs({
      ...vcpu.getSregs(),
      cs: { ...flat, selector: 8, type: 11, db: 0, l: 1 },
      ...{ ds: data, es: data, ss: data },
      cr0: 0x80010033n,
      cr3: BigInt(TABLES),
      cr4: 0x20n,
      efer: 0x500n,
    });
    return vcpu;
  }
}
