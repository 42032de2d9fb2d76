/**
 * An SNP guest on a core that follows a script, so each request by GHCB can be looked at by itself: its page is written as the guest would, then it exits by VMGEXIT (0x403).
 * Offsets in the page and bits of its bitmap are the specification's.
 */
import type { Hva } from '../../../src/base/address.ts';
import { GHCB, type SnpOptions, SnpVm } from './snp-bench.ts';
import { ScriptedCore, type Step } from './vcpu-bench.ts';

/** Offsets of the fields; the valid bit is offset / 8. */
export const FIELD = {
  cpl: 0x0c8,
  rax: 0x1f8,
  rcx: 0x308,
  rdx: 0x310,
  rbx: 0x318,
  rsi: 0x330,
  code: 0x390,
  info1: 0x398,
  info2: 0x3a0,
  scratch: 0x3a8,
  xcr0: 0x3e8,
} as const;
export type FieldName = keyof typeof FIELD;

export interface Request extends Partial<Record<FieldName, bigint>> {
  /** Written without their valid bits. */
  readonly invalid?: readonly FieldName[];
  /** GHCB_USAGE */
  readonly usage?: number;
}

/** Scratch area: the GHCB's shared buffer. */
export const BUFFER = GHCB + 0x800;

export interface GhcbOptions extends SnpOptions {
  readonly certs?: boolean;
  readonly ghcbVersion?: number;
  /** Further vCPUs, by id. */
  readonly others?: readonly number[];
  readonly prepare?: (snp: SnpVm) => void;
  /** Adds pages to the launch. */
  readonly launch?: (snp: SnpVm) => void;
}

export class GhcbBench {
  readonly snp: SnpVm;
  readonly core: ScriptedCore;
  readonly cores: ScriptedCore[] = [];
  /** The GHCB MSR as the guest found it when it ran on. */
  msr = 0n;

  constructor(options: GhcbOptions = {}) {
    const { certs, ghcbVersion, others = [], prepare, launch, ...rest } = options;
    const snp = new SnpVm({ memory: 8 << 20, ...rest });
    this.snp = snp;
    Object.assign(snp.vm, {
      createCore: (id: number) => (this.cores[id] ??= new ScriptedCore(snp.kernel.memory)),
    });
    this.core = this.cores[0] = new ScriptedCore(snp.kernel.memory);
    prepare?.(snp);
    snp.init({ ...(certs !== undefined && { certs }), ...(ghcbVersion !== undefined && { ghcbVersion }) });
    for (const id of others) snp.vm.createVcpu(id);
    snp.start();
    launch?.(snp);
    snp.finish();
  }

  /** VMGEXIT with this in the GHCB MSR. */
  vmgexit(msr: bigint): Step {
    return (core) => {
      core.set(0xa0, msr);
      core.set(0x70, 0x403n);
      core.set(0x78, 0n);
      core.set(0x80, 0n);
      return 0x403;
    };
  }

  /** The guest goes on: it halts, and KVM_RUN comes back with exit HLT (5); with a local APIC in the kernel, where it would wait there, SHUTDOWN (8). */
  readonly goOn: Step = (core) => {
    const code = this.snp.vm.interrupts === undefined ? 0x78 : 0x7f;
    this.msr = core.long(0xa0);
    core.set(0x70, BigInt(code));
    return code;
  };

  /** Runs VMGEXIT with a value of the MSR, then what comes. */
  ask(msr: bigint): number {
    this.core.script.splice(0);
    this.core.script.push(this.vmgexit(msr), this.goOn);
    return this.snp.vcpu.run();
  }

  register(gpa = GHCB): this {
    this.ask(BigInt(gpa) | 0x12n);
    return this;
  }

  /** Writes the request into the page at `gpa` and asks. */
  request(request: Request, gpa = GHCB): number {
    this.put(request, gpa);
    return this.ask(BigInt(gpa));
  }

  /** Writes the request into the page; the shared buffer stays as it is. */
  put(request: Request, gpa = GHCB): void {
    const page = new Uint8Array(4096);
    const view = new DataView(page.buffer);
    this.snp.process.memory.read((this.snp.hva + gpa + 0x800) as Hva, page.subarray(0x800));
    const { invalid = [], usage = 0, ...fields } = request;
    for (const [name, value] of Object.entries(fields) as [FieldName, bigint][]) {
      const offset = FIELD[name];
      // The CPL is a byte: the highest of its eight.
      view.setBigUint64(offset, name === 'cpl' ? value << 24n : BigInt.asUintN(64, value), true);
      if (invalid.includes(name)) continue;
      const bit = offset / 8;
      page[0x3f0 + (bit >> 3)]! |= 1 << (bit & 7);
    }
    view.setUint32(0xffc, usage, true);
    this.write(gpa, page);
  }

  write(gpa: number, bytes: Uint8Array): void {
    this.snp.process.memory.write((this.snp.hva + gpa) as Hva, bytes);
  }

  /** SW_EXITINFO1 and 2 of the answer. */
  get answer(): [bigint, bigint] {
    return [this.snp.long(GHCB + 0x398), this.snp.long(GHCB + 0x3a0)];
  }
  field(name: FieldName, gpa = GHCB): bigint {
    return this.snp.long(gpa + FIELD[name]);
  }
  isValid(name: FieldName): boolean {
    const bit = FIELD[name] / 8;
    return (this.snp.read(GHCB + 0x3f0 + (bit >> 3), 1)[0]! & (1 << (bit & 7))) !== 0;
  }
  get exitReason(): number {
    return this.snp.vcpu.kvmRun.exitReason;
  }
  close(): void {
    this.snp.close();
  }
}
