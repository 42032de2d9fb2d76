/**
 * An SNP guest whose code runs, between the deeds of a hostile host: in each round it validates a page, makes random numbers, keeps them in registers and in that page, and
 * halts. So its secrets are where a real one has them: in private memory, in the VMSA, in what a core keeps of them.
 */
import type { Hva, Pfn, Spa } from '../../../src/base/address.ts';
import {
  Code,
  hlt,
  iced,
  jump,
  load,
  move,
  onRegister,
  op,
  set,
  store,
  two,
} from '../../hardware/cpu/assembler.ts';
import { Random } from '../../oracle/random.ts';
import { frameOfGuestPage } from './guest-messages.ts';
import { RecordedKeys } from './recorded-keys.ts';
import { SecretSearch } from './secrecy-search.ts';
import { CODE, FRESH, HANDLER, SHARED, SnpVm, STACK } from './snp-bench.ts';

const { Register } = iced;
const HLT = 5;
const MEMORY_FAULT = 39;
const SHARED_STATE = { assigned: false, large: false, immutable: false, gpa: 0, asid: 0 };

/** Again from the start. An exception ends a round: that is what the host gets from meddling. */
const again = () => [hlt(), set('rax', CODE), jump('rax')];
const PROGRAM = [
  set('rsp', STACK),
  set('rdi', SHARED),
  load('rsi', 'rdi'),
  move('rax', 'rsi'),
  set('rcx', 0),
  set('rdx', 1),
  op(Code.Pvalidateq),
  onRegister(Code.Rdrand_r64, Register.RBX),
  onRegister(Code.Rdrand_r64, Register.RBP),
  two(Code.Movq_xmm_rm64, Register.XMM3, Register.RBP),
  store('rsi', 'rbx'),
  store('rsi', 'rbp', 8),
  set('rdi', SHARED),
  store('rdi', 'rsi', 8),
  ...again(),
];

export const DEEDS = ['round', 'conversion', 'punch', 'page taken', 'page written', 'vCPU read'] as const;
export type Deed = (typeof DEEDS)[number];

export class SecretGuest {
  readonly snp: SnpVm;
  readonly search: SecretSearch;
  readonly happened = new Map<Deed, number>(DEEDS.map((deed) => [deed, 0]));
  /** The last number that the guest made. */
  secret = new Uint8Array(0);
  #random = new Random(0);

  constructor() {
    const keys = new RecordedKeys(5);
    this.snp = new SnpVm({ memory: 5 << 20, keepOpen: true, entropy: keys });
    for (const handler of [HANDLER, HANDLER + 0x100, HANDLER + 0x200]) this.snp.load(again(), handler);
    this.snp.launch(PROGRAM);
    this.search = new SecretSearch(this.snp, keys);
  }

  live(seed: number): void {
    this.#random = new Random(seed);
    for (let left = 2 + this.#random.below(4); left > 0; left--) this.#do(this.#random.pick(DEEDS));
    this.#do('round');
  }

  #do(deed: Deed): void {
    const page = FRESH + 4096 * this.#random.below(4);
    let did = false;
    this.search.attempt(() => {
      did = this.#did(deed, page);
    });
    if (did) this.happened.set(deed, this.happened.get(deed)! + 1);
  }

  #did(deed: Deed, page: number): boolean {
    const { snp } = this;
    const { memory } = snp.kernel;
    switch (deed) {
      case 'round':
        return this.#round(page);
      case 'conversion':
        snp.attributes(page, 4096, 0n);
        return true;
      case 'punch':
        if (this.#frameOf(page) === undefined) return false;
        snp.process.fallocate(snp.gmem, 3, BigInt(page), 4096n);
        return true;
      case 'vCPU read':
        this.search.readVcpu();
        return true;
      case 'page taken':
      case 'page written': {
        const frame = this.#frameOf(page);
        if (frame === undefined) return false;
        const at = (frame * 4096) as Spa;
        memory.rmp!.rmpupdate(at, SHARED_STATE);
        const bytes = new Uint8Array(4096);
        memory.read(at, bytes);
        this.search.answers.push(bytes);
        if (deed === 'page written') memory.write(at, new Uint8Array(16).fill(this.#random.below(256)));
        const back = { ...SHARED_STATE, assigned: true, asid: snp.vm.sev!.asid, gpa: page };
        return memory.rmp!.rmpupdate(at, back) === 0;
      }
    }
  }

  /** True: the guest got to its end. */
  #round(page: number): boolean {
    const { snp } = this;
    const order = new BigUint64Array([BigInt(page), 0n]);
    snp.process.memory.write((snp.hva + SHARED) as Hva, new Uint8Array(order.buffer));
    for (let exits = 0; exits < 10; exits++) {
      snp.vcpu.run();
      const { exitReason } = snp.vcpu.kvmRun;
      if (exitReason === HLT) break;
      if (exitReason !== MEMORY_FAULT) throw new Error(`the guest left with exit ${exitReason}`);
      snp.attributes(page, 4096, 8n);
    }
    if (snp.long(SHARED + 8) !== BigInt(page)) return false;
    const frame = frameOfGuestPage(snp, page) as Pfn;
    const { encryption } = snp.kernel.memory;
    const numbers = new Uint8Array(16);
    encryption.readUnder(encryption.keyOf(snp.vm.sev!.asid), (frame * 4096) as Spa, numbers);
    this.secret = numbers.slice(0, 8);
    this.search.keep('RBX', this.secret);
    this.search.keep('RBP and XMM3', numbers.slice(8));
    return true;
  }

  #frameOf(page: number): Pfn | undefined {
    try {
      return frameOfGuestPage(this.snp, page) as Pfn;
    } catch {
      return undefined;
    }
  }

  /** Whether the secret is where the test looks for it: in the VMSA, by the guest's own key. */
  get isInVmsa(): boolean {
    const { snp } = this;
    const { memory } = snp.kernel;
    const vmsa = new Uint8Array(4096);
    const at = Number(snp.vcpu.vmcb.long(0x108)) as Spa;
    memory.encryption.readUnder(memory.encryption.keyOf(snp.vm.sev!.asid), at, vmsa);
    return Buffer.from(vmsa).includes(Buffer.from(this.secret));
  }

  close(): void {
    this.search.close();
    this.snp.close();
  }
}
