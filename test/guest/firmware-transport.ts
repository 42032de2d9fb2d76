/** A guest's transport straight to firmware, with no KVM between: what the driver's tests run against. The host can be told to misbehave. */
import { seededEntropy } from '../../src/base/entropy.ts';
import type { GuestTransport, SharedBuffer } from '../../src/guest/transport.ts';
import { Machine } from '../hardware/asp/machine.ts';

export const MiB = 1 << 20;

export interface HostAnswer {
  /** SW_EXITINFO2; undefined: firmware is asked. */
  readonly exitInfo2?: bigint;
  /** Changes firmware's answer on its way back. */
  readonly spoil?: (page: Uint8Array) => void;
}

export class FirmwareTransport implements GuestTransport {
  readonly machine = new Machine({ entropy: seededEntropy(1) });
  readonly secrets = new Uint8Array(4096);
  readonly vmpl: number = 0;
  /** What the host does to the requests to come, in order; then it behaves. */
  readonly script: HostAnswer[] = [];
  readonly log: string[] = [];
  /** Certificate table of the host. */
  certificates: Uint8Array = new Uint8Array(24);
  slept = 0;
  /** Requests as the host saw them. */
  readonly seen: Uint8Array[] = [];
  readonly #context: number;
  readonly #shared = new Set<SharedBuffer>();

  constructor() {
    const { machine } = this;
    machine.init();
    this.#context = machine.startGuest();
    const secrets = machine.preGuestPage(0x9000);
    if (machine.launchUpdate(this.#context as never, secrets, 5) !== 0) throw new Error('no secrets page');
    if (machine.run(0xa2, [[0, 8, this.#context]]) !== 0) throw new Error('no launch');
    machine.memory.encryption.readUnder(machine.memory.encryption.keyOf(1), secrets, this.secrets);
  }

  get sharedBuffers(): number {
    return this.#shared.size;
  }
  allocateShared(pages: number): SharedBuffer {
    const buffer = { bytes: new Uint8Array(4096 * pages) };
    this.#shared.add(buffer);
    return buffer;
  }
  freeShared(buffer: SharedBuffer): void {
    this.#shared.delete(buffer);
  }

  async request(request: SharedBuffer, response: SharedBuffer): Promise<bigint> {
    this.log.push('plain');
    return this.#carry(request, response);
  }

  async extendedRequest(
    request: SharedBuffer,
    response: SharedBuffer,
    { buffer, pages }: { buffer: SharedBuffer | undefined; pages: number },
  ): Promise<{ exitInfo2: bigint; pages: number }> {
    this.log.push(`extended ${pages}`);
    const needed = Math.ceil(this.certificates.length / 4096);
    if (pages < needed) return { exitInfo2: 1n << 32n, pages: needed };
    buffer?.bytes.set(this.certificates);
    return { exitInfo2: this.#carry(request, response), pages };
  }

  async sleep(milliseconds: number): Promise<void> {
    this.slept += milliseconds;
  }
  now(): number {
    return this.slept;
  }

  #carry(request: SharedBuffer, response: SharedBuffer): bigint {
    this.seen.push(request.bytes.slice());
    const answer = this.script.shift();
    if (answer?.exitInfo2 !== undefined) return answer.exitInfo2;
    const { machine } = this;
    const from = machine.page();
    const to = machine.firmwarePage();
    machine.memory.write(from, request.bytes);
    const status = machine.run(0x94, [
      [0, 8, this.#context],
      [8, 8, from],
      [16, 8, to],
    ]);
    machine.memory.read(to, response.bytes);
    answer?.spoil?.(response.bytes);
    return BigInt(status);
  }

  close(): void {
    this.machine.memory.close();
  }
}
