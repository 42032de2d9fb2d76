/**
 * A guest of the host's own, kept in its launch, whose policy allows debugging: by it the host has firmware read a page of another guest from an address, and looks at what
 * firmware saw there. It must be what the host sees there itself.
 */
import type { Gpa, Pfn, Spa } from '../../../src/base/address.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { SnpVm } from './snp-bench.ts';

const [GUEST_REQUEST, LAUNCH_UPDATE, LAUNCH_FINISH, VLEK_LOAD, PAGE_SET_STATE] = [
  0x94, 0xa1, 0xa2, 0xcd, 0xc6,
];
const [DBG_DECRYPT, DBG_ENCRYPT] = [0xb0, 0xb1];
/** SMT, the reserved bit that has to be 1, and debugging. */
const POLICY = 0xb_0000n;
const SHARED_STATE = { assigned: false, large: false, immutable: false, gpa: 0, asid: 0 };

/** Of the other guest: its context, and where answers to its messages go. */
interface MessagePages {
  readonly context: Pfn;
  readonly response: Pfn;
}

export class PuppetGuest {
  readonly #snp: SnpVm;
  readonly #vm: Vm;
  /** A page that awaits its launch. */
  readonly #page: Pfn;

  /** Errors: as those of KVM_SEV_INIT2 and KVM_SEV_SNP_LAUNCH_START. */
  constructor(snp: SnpVm) {
    this.#snp = snp;
    const { sevFd, process } = snp;
    const { memory } = snp.kernel;
    this.#page = memory.allocate(0, memory.owner('puppet')) as Pfn;
    this.#vm = process.openKvm().createVm(4) as Vm;
    this.#vm.memoryEncryptOp({ id: 22, sevFd, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0 } });
    const data = { policy: POLICY, gosvw: new Uint8Array(16), flags: 0 };
    this.#vm.memoryEncryptOp({ id: 100, sevFd, data });
    this.#assign(this.#page);
  }

  /** What firmware reads of a frame for DBG_ENCRYPT, by way of the puppet's page. */
  encryptedFrom(frame: Pfn): Uint8Array {
    const status = this.#snp.kernel.psp!.command(DBG_ENCRYPT, u64s(this.#context, at(frame), at(this.#page)));
    if (status !== 0) throw new Error(`SNP_DBG_ENCRYPT: status ${status}`);
    return this.#decrypted(this.#page);
  }

  /** What a frame that the host took from another guest is to the puppet, once LAUNCH_UPDATE made it its own. The host has it back. */
  launchedWith(frame: Pfn): Uint8Array {
    const { psp, memory } = this.#snp.kernel;
    this.#assign(frame);
    // UNMEASURED, of 4 KiB.
    const status = psp!.command(LAUNCH_UPDATE, u64s(this.#context, 4n << 1n, at(frame), 0n));
    if (status !== 0) throw new Error(`SNP_LAUNCH_UPDATE: status ${status}`);
    const seen = this.#decrypted(frame);
    memory.rmp!.rmpupdate((frame * 4096) as Spa, SHARED_STATE);
    return seen;
  }

  /** Has each command read the frame that reads where the host says. Throws where firmware takes it, or says else than of its ciphertext. */
  judge(frame: Pfn, guest: MessagePages): void {
    const { memory } = this.#snp.kernel;
    const copy = memory.allocate(0, memory.owner('host')) as Pfn;
    memory.copy((copy * 4096) as Spa, (frame * 4096) as Spa, 4096);
    const [verdicts, wanted] = [this.#verdictsOn(frame, guest), this.#verdictsOn(copy, guest)];
    memory.free(copy, 0);
    if (verdicts.includes(0) || verdicts.join() !== wanted.join())
      throw new Error(`firmware said ${verdicts} of the guest's page, ${wanted} of its ciphertext`);
  }

  #verdictsOn(frame: Pfn, { context, response }: MessagePages): readonly number[] {
    const { psp } = this.#snp.kernel;
    const idBlock = new Uint8Array(64);
    idBlock.set(u64s(this.#context, at(frame), at(frame), 1n));
    return [
      psp!.command(GUEST_REQUEST, u64s(at(context), at(frame), at(response))),
      psp!.command(LAUNCH_FINISH, idBlock),
      psp!.command(VLEK_LOAD, u64s(16n, at(frame))),
      psp!.command(PAGE_SET_STATE, u64s(16n, at(frame))),
    ];
  }

  close(): void {
    const { psp, memory } = this.#snp.kernel;
    if (psp!.reclaim(this.#page)) memory.free(this.#page, 0);
    this.#vm.close();
  }

  get #context(): bigint {
    return at(this.#vm.sev!.context!);
  }

  /** To the puppet, before its launch. */
  #assign(frame: Pfn): void {
    const entry = {
      assigned: true,
      large: false,
      immutable: true,
      gpa: 0x1000 as Gpa,
      asid: this.#vm.sev!.asid,
    };
    const result = this.#snp.kernel.memory.rmp!.rmpupdate((frame * 4096) as Spa, entry);
    if (result !== 0) throw new Error(`RMPUPDATE: result ${result}`);
  }

  #decrypted(frame: Pfn): Uint8Array {
    const into = new Uint8Array(4096);
    const status = this.#snp.kernel.psp!.ask(DBG_DECRYPT, into, (to) => u64s(this.#context, at(frame), to));
    if (status !== 0) throw new Error(`SNP_DBG_DECRYPT: status ${status}`);
    return into;
  }
}

const at = (frame: Pfn): bigint => BigInt(frame) * 4096n;

function u64s(...values: readonly bigint[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(values).buffer);
}
