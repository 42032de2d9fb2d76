/**
 * Whether anything that a host can read shows a guest's secrets: short histories of launches, conversions, faults, punches, requests and failures, and a checker that looks
 * everywhere after each of them. Leaks can be planted, one for each kind of place, to see that the checker finds them.
 */
import type { Hva, Pfn, Spa } from '../../../src/base/address.ts';
import { LinuxError } from '../../../src/base/errors.ts';
import { GhcbBench } from './ghcb-bench.ts';
import { GuestMessages } from './guest-messages.ts';
import { FRESH, GHCB, SECRETS, SHARED, type SnpVm } from './snp-bench.ts';
import { exit, HLT } from './vcpu-bench.ts';

export const PLACES = [
  'process memory',
  'frames',
  'guest_memfd',
  'firmware buffers',
  'traces',
  'error messages',
] as const;
export type Place = (typeof PLACES)[number];

const PUNCH = 3;
const NEEDLE = 16;

/** Numbers from 0 to n − 1, the same for each seed. */
function draws(seed: number): (n: number) => number {
  let state = seed >>> 0;
  return (n) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
}

/** A machine with one guest at a time; many short lives on it. */
export class SecretMachine {
  readonly bench: GhcbBench;
  readonly said: string[] = [];
  #draw: (n: number) => number = () => 0;
  #secrets: { name: string; bytes: Buffer }[] = [];

  constructor(options: { memory?: number } = {}) {
    this.bench = new GhcbBench({
      memory: options.memory ?? 5 << 20,
      keepOpen: true,
      launch: (snp) => {
        snp.update(5, SECRETS, 4096);
        snp.update(3, 0x10000, 0x2000);
      },
    }).register();
    this.snp.kernel.trace.listen((event) => this.said.push(JSON.stringify(event, replacer)));
    this.#keep('VMPCK 0', new GuestMessages(this.snp).key);
    for (let i = 1; i < 4; i++) this.#keep(`VMPCK ${i}`, this.#guestBytes(SECRETS + 0x20 + 32 * i, 32));
  }

  get snp(): SnpVm {
    return this.bench.snp;
  }

  /** One history. */
  live(seed: number): void {
    this.#draw = draws(seed);
    const steps = 2 + this.#draw(4);
    for (let i = 0; i < steps; i++) this.#step();
  }

  #step(): void {
    const { snp } = this;
    const page = FRESH + 4096 * this.#draw(8);
    const attempt = (action: () => unknown): void => {
      try {
        action();
      } catch (error) {
        if (!(error instanceof LinuxError)) throw error;
        this.said.push(error.message);
      }
    };
    const steps: readonly (() => unknown)[] = [
      () => snp.attributes(page, 4096, 8n),
      () => snp.attributes(page, 4096, 0n),
      () => snp.process.fallocate(snp.gmem, PUNCH, BigInt(page), 4096n),
      () => this.#fault(page),
      () => this.#writeSecret(0x10000 + 8 * this.#draw(1000)),
      () => this.#ownPage(page),
      () => this.#ask(),
      () =>
        snp.kernel.secureProcessor!.inject({
          command: [0x94, 0xc7, 0xa1][this.#draw(2)]!,
          nth: 1,
          status: 0x16,
        }),
      () => snp.update(1, page, 4096),
      () => snp.vcpu.getRegs(),
      () => snp.process.memory.write((snp.hva + page) as Hva, new Uint8Array(64).fill(this.#draw(256))),
      () => this.#launchAnother(),
    ];
    attempt(steps[this.#draw(steps.length)]!);
  }

  #fault(page: number): void {
    const { core, snp } = this.bench;
    core.script.splice(0);
    core.script.push(exit(0x400, 4n | (4n << 32n), BigInt(page)), HLT);
    this.said.push(`KVM_RUN ${snp.vcpu.run()}`);
  }

  /** The guest has faulted a page in, validated it, and writes a secret there. */
  #ownPage(page: number): void {
    this.snp.attributes(page, 4096, 8n);
    this.#fault(page);
    const frame = this.#frameOf(page);
    if (frame === undefined) return;
    this.snp.kernel.memory.rmp!.setValidated(frame, true);
    this.#writeSecret(page + 8 * this.#draw(500));
  }

  /** A write of the guest: 16 bytes that nobody else has. */
  #writeSecret(gpa: number): void {
    const frame = this.#frameOf(gpa - (gpa % 4096));
    if (frame === undefined) return;
    const bytes = Uint8Array.from({ length: NEEDLE }, () => 1 + this.#draw(255));
    const { encryption } = this.snp.kernel.memory;
    encryption.writeUnder(
      encryption.keyOf(this.snp.vm.sev!.asid),
      (frame * 4096 + (gpa % 4096)) as Spa,
      bytes,
    );
    this.#keep(`secret at 0x${gpa.toString(16)}`, bytes);
    if (this.#secrets.length > 40) this.#secrets.splice(4, 1);
  }

  /** A guest request: its payload is the guest's and firmware's alone, but the report that comes of it is for whoever gets the answer's key. */
  #ask(): void {
    const { snp } = this;
    this.bench.write(
      SHARED,
      Uint8Array.from({ length: 4096 }, (_, i) => (i < 0x80 ? this.#draw(256) : 0)),
    );
    this.bench.request({ code: 0x8000_0011n, info1: BigInt(SHARED), info2: BigInt(SHARED + 4096) });
    this.said.push(`answer ${snp.long(GHCB + 0x3a0)}`);
  }

  #launchAnother(): void {
    const { snp } = this;
    const vm = snp.process.openKvm().createVm(4);
    try {
      vm.memoryEncryptOp({ id: 22, sevFd: snp.sevFd, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0 } });
      const data = {
        policy: this.#draw(2) === 0 ? 0x30000n : 0x3_ff00n,
        gosvw: new Uint8Array(16),
        flags: 0,
      };
      vm.memoryEncryptOp({ id: 100, sevFd: snp.sevFd, data });
    } finally {
      vm.close();
    }
  }

  #frameOf(gpa: number): Pfn | undefined {
    const { rmp, frameCount } = this.snp.kernel.memory;
    const { asid } = this.snp.vm.sev!;
    for (let frame = 0; frame < frameCount; frame++)
      if (rmp!.assigned(frame as Pfn)) {
        const entry = rmp!.entry(frame as Pfn);
        if (entry.asid === asid && entry.gpa === gpa) return frame as Pfn;
      }
    return undefined;
  }

  #guestBytes(gpa: number, count: number): Uint8Array {
    const { encryption } = this.snp.kernel.memory;
    const frame = this.#frameOf(gpa - (gpa % 4096))!;
    const bytes = new Uint8Array(count);
    encryption.readUnder(encryption.keyOfFrame(frame), (frame * 4096 + (gpa % 4096)) as Spa, bytes);
    return bytes;
  }

  #keep(name: string, bytes: Uint8Array): void {
    this.#secrets.push({ name, bytes: Buffer.from(bytes.slice(0, NEEDLE)) });
  }

  /** Puts a secret where it must not be. */
  plant(place: Place): void {
    const { snp } = this;
    const { memory } = snp.kernel;
    const { bytes } = this.#secrets[0]!;
    switch (place) {
      case 'process memory':
        snp.process.memory.write((snp.hva + SHARED + 0x2123) as Hva, bytes);
        break;
      case 'frames':
        memory.write((memory.allocate(0, memory.owner('leak')) * 4096 + 77) as Spa, bytes);
        break;
      case 'guest_memfd':
        // Its page as it is under the guest's key, to be read as if there were none.
        memory.encryption.adopt(this.#frameOf(SECRETS)!, 0);
        break;
      case 'firmware buffers':
        memory.encryption.writeUnder(0, (snp.vm.sev!.responsePage * 4096 + 0x100) as Spa, bytes);
        break;
      case 'traces':
        this.said.push(JSON.stringify({ kind: 'call', key: bytes.toString('hex') }));
        break;
      case 'error messages':
        this.said.push(new LinuxError('EIO', `key ${bytes.toString('base64')}`).message);
        break;
    }
  }

  /** Where a secret can be read, and which; undefined: nowhere. */
  leak(): string | undefined {
    const { snp } = this;
    const { memory } = snp.kernel;
    const frames = withContent(memory.frameCount, (page, into) => memory.read((page * 4096) as Spa, into));
    const window = withContent(WINDOW_PAGES, (page, into) =>
      snp.process.memory.read((snp.hva + page * 4096) as Hva, into),
    );
    const text = this.said.splice(0).join('\n');
    for (const { name, bytes } of this.#secrets) {
      const at = frames.bytes.indexOf(bytes);
      if (at >= 0) return `${name}: frame ${frames.pages[Math.floor(at / 4096)]}`;
      if (window.bytes.includes(bytes)) return `${name}: process memory`;
      const forms = [bytes.toString('hex'), bytes.toString('base64').slice(0, 20), [...bytes].join(',')];
      if (forms.some((form) => text.includes(form))) return `${name}: said`;
    }
    return undefined;
  }

  close(): void {
    this.snp.process.exit();
    this.snp.kernel.close();
  }
}

const WINDOW_PAGES = 512;
const ZEROS = Buffer.alloc(4096);

/** The pages of these that are not all zero, one behind the other, and which they are. */
function withContent(
  count: number,
  read: (page: number, into: Uint8Array) => void,
): { bytes: Buffer; pages: number[] } {
  const bytes = Buffer.alloc(count * 4096);
  const pages: number[] = [];
  for (let page = 0; page < count; page++) {
    const into = bytes.subarray(pages.length * 4096, (pages.length + 1) * 4096);
    read(page, into);
    if (!into.equals(ZEROS)) pages.push(page);
  }
  return { bytes: bytes.subarray(0, pages.length * 4096), pages };
}

const replacer = (_: string, value: unknown): unknown =>
  typeof value === 'bigint'
    ? value.toString(16)
    : value instanceof Uint8Array
      ? Buffer.from(value).toString('hex')
      : value;
