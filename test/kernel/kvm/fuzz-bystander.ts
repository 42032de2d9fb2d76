/**
 * A VM that the fuzzer has no hold of: its guest adds RAX to a word of private memory and copies it to a shared page, over and over; between rounds it writes AL
 * to a port, or, as an SNP guest, goes on until its time is up. Memory, registers, slots and attributes are what a model says, whatever others do.
 */
import { expect } from 'vitest';
import type { Hva } from '../../../src/base/address.ts';
import type { Regs } from '../../../src/kernel/interface.ts';
import type { Vcpu } from '../../../src/kernel/kvm/vcpu.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { Process } from '../../../src/kernel/process.ts';

const PML4 = 0x1000;
const PT = 0x4000;
const CODE = 0x8000;
const PRIVATE = 0x10000;
const SHARED = 0x41000;
const LAUNCHED = 0x11000;
const RAM = 0x80000;
const C_BIT = 1n << 51n;
const STEP = 0x1234_5677n;
/** again: add [rdi], rax; mov rcx, [rdi]; mov [rsi], rcx; inc rbx; out dx, al; jmp again */
const ROUND = [0x48, 0x01, 0x07, 0x48, 0x8b, 0x0f, 0x48, 0x89, 0x0e, 0x48, 0xff, 0xc3];
const WITH_PORT = [...ROUND, 0xee, 0xeb, 0xf1];
/** Five instructions; the third stores. */
const WITHOUT_PORT = [...ROUND, 0xeb, 0xf2];

export type BystanderKind = 'default' | 'sw-protected' | 'sev-snp';
const TYPES: Record<BystanderKind, number> = { default: 0, 'sw-protected': 1, 'sev-snp': 4 };

export class Bystander {
  readonly kind: BystanderKind;
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly hva: Hva;
  /** Its descriptors in the process. */
  readonly fds: number[] = [];
  readonly #process: Process;
  readonly #state: unknown;
  #rounds = 0n;

  constructor(process: Process, kind: BystanderKind) {
    this.#process = process;
    this.kind = kind;
    const before = new Set(process.files.open());
    this.vm = process.openKvm().createVm(TYPES[kind]) as Vm;
    this.hva = process.memory.mmap({ length: RAM, protection: 3, flags: 0x22 });
    const gmem = kind === 'default' ? 0 : this.vm.createGuestMemfd({ size: BigInt(RAM), flags: 0n });
    this.vm.setUserMemoryRegion2({
      slot: 0,
      flags: kind === 'default' ? 0 : 4,
      guestPhysAddr: 0n,
      memorySize: BigInt(RAM),
      userspaceAddr: BigInt(this.hva),
      guestMemfd: gmem,
      guestMemfdOffset: 0n,
    });
    process.memory.write(this.hva, this.#image());
    process.memory.write((this.hva + SHARED) as Hva, new Uint8Array(4096));
    const sevFd = kind === 'sev-snp' ? process.openSev() : -1;
    if (kind === 'sev-snp') {
      this.vm.memoryEncryptOp({ id: 22, sevFd, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 2 } });
    }
    this.vcpu = this.vm.createVcpu(0);
    this.#registers();
    if (kind === 'sev-snp') this.#launch(sevFd);
    else if (kind === 'sw-protected') {
      this.vm.setMemoryAttributes({ address: BigInt(PRIVATE), size: 4096n, attributes: 8n, flags: 0n });
    }
    this.fds = process.files.open().filter((fd) => !before.has(fd));
    this.#state = this.#kernelState();
    for (let round = 0; round < 3; round++) this.check();
  }

  get end(): number {
    return this.hva + RAM;
  }

  /** Runs once around, and compares everything with the model. */
  check(): void {
    let result = this.vcpu.run();
    if (this.kind !== 'sev-snp' && result === -4) result = this.vcpu.run();
    this.#rounds++;
    const { kvmRun } = this.vcpu;
    if (this.kind === 'sev-snp') {
      expect({ kind: this.kind, result, exitReason: kvmRun.exitReason }).toEqual({
        kind: this.kind,
        result: -4,
        exitReason: 10,
      });
      this.#rounds = BigInt(Math.floor((this.vcpu.instructions + 2) / 5));
    } else {
      const { ioPort, ioDirection, ioSize, ioCount, exitReason } = kvmRun;
      expect({
        kind: this.kind,
        result,
        exitReason,
        ioPort,
        ioDirection,
        ioSize,
        ioCount,
        value: kvmRun.ioValue(),
      }).toEqual({
        kind: this.kind,
        result: 0,
        exitReason: 2,
        ioPort: 0x80,
        ioDirection: 1,
        ioSize: 1,
        ioCount: 1,
        value: 0x77,
      });
      this.#checkRegisters(this.vcpu.getRegs());
    }
    const total = BigInt.asUintN(64, STEP * this.#rounds);
    expect({ kind: this.kind, shared: this.#long(SHARED) }).toEqual({ kind: this.kind, shared: total });
    if (this.kind !== 'default') expect(this.#long(PRIVATE)).toBe(0n);
    expect(this.#kernelState()).toEqual(this.#state);
  }

  #checkRegisters({ rax, rbx, rcx, rdx, rsi, rdi, rip }: Regs): void {
    expect({ kind: this.kind, rax, rbx, rcx, rdx, rsi, rdi, rip }).toEqual({
      kind: this.kind,
      rax: STEP,
      rbx: this.#rounds,
      rcx: BigInt.asUintN(64, STEP * this.#rounds),
      rdx: 0x80n,
      rsi: BigInt(SHARED),
      rdi: BigInt(PRIVATE),
      // At the OUT, which the next KVM_RUN completes.
      rip: BigInt(CODE + 12),
    });
  }

  /** What the kernel holds of the VM that no guest changes. */
  #kernelState(): unknown {
    const slots = this.vm.addressSpaces.map((space) =>
      space.all().map(({ id, baseGfn, npages, userspaceAddr, flags, gmem }) => ({
        id,
        baseGfn,
        npages,
        userspaceAddr,
        flags,
        bound: gmem !== undefined,
      })),
    );
    const gfns = Array.from({ length: RAM / 4096 }, (_, gfn) => this.vm.attributes.isPrivate(gfn as never));
    const { cr0, cr3, cr4, efer } =
      this.kind === 'sev-snp' ? ({} as Record<string, bigint>) : this.vcpu.getSregs();
    return {
      slots,
      gfns,
      cr0,
      cr3,
      cr4,
      efer,
      cpuid: this.vcpu.getCpuid2().length,
      mp: this.vcpu.getMpState(),
    };
  }

  #long(gpa: number): bigint {
    const bytes = new Uint8Array(8);
    this.#process.memory.read((this.hva + gpa) as Hva, bytes);
    return new DataView(bytes.buffer).getBigUint64(0, true);
  }

  #image(): Uint8Array {
    const image = new Uint8Array(LAUNCHED);
    const view = new DataView(image.buffer);
    const c = this.kind === 'sev-snp' ? C_BIT : 0n;
    view.setBigUint64(PML4, 0x2007n | c, true);
    view.setBigUint64(0x2000, 0x3007n | c, true);
    view.setBigUint64(0x3000, BigInt(PT) | 7n | c, true);
    for (let page = 0; page < 512; page++) {
      view.setBigUint64(PT + page * 8, BigInt(page * 4096) | 3n | (page * 4096 === SHARED ? 0n : c), true);
    }
    image.set(this.kind === 'sev-snp' ? WITHOUT_PORT : WITH_PORT, CODE);
    return image;
  }

  #launch(sevFd: number): void {
    const { vm } = this;
    vm.memoryEncryptOp({ id: 100, sevFd, data: { policy: 0x30000n, gosvw: new Uint8Array(16), flags: 0 } });
    vm.setMemoryAttributes({ address: 0n, size: BigInt(LAUNCHED), attributes: 8n, flags: 0n });
    const data = { gfnStart: 0n, uaddr: BigInt(this.hva), len: BigInt(LAUNCHED), type: 1, flags: 0 };
    vm.memoryEncryptOp({ id: 101, sevFd, data });
    vm.memoryEncryptOp({
      id: 102,
      sevFd,
      data: { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 },
    });
    this.#process.memory.write(this.hva, new Uint8Array(LAUNCHED));
  }

  #registers(): void {
    const { vcpu } = this;
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const data = { ...flat, selector: 16, type: 3, db: 1, l: 0 };
    vcpu.setSregs({
      ...vcpu.getSregs(),
      cs: { ...flat, selector: 8, type: 11, db: 0, l: 1 },
      ds: data,
      es: data,
      fs: data,
      gs: data,
      ss: data,
      cr0: 0x80010033n,
      cr3: BigInt(PML4),
      cr4: 0x6a0n,
      efer: 0xd01n,
    });
    vcpu.setRegs({
      ...vcpu.getRegs(),
      rax: STEP,
      rbx: 0n,
      rdx: 0x80n,
      rsi: BigInt(SHARED),
      rdi: BigInt(PRIVATE),
      rip: BigInt(CODE),
      rsp: 0xb000n,
      rflags: 2n,
    });
  }
}
