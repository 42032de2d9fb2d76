/** Local APICs of vCPUs that only count what they are told, on a host whose time the test moves. */
import { HostTime } from '../../../../src/kernel/kvm/host-time.ts';
import { InterruptController } from '../../../../src/kernel/kvm/lapic/interrupt-controller.ts';
import { Lapic, type LapicVcpu } from '../../../../src/kernel/kvm/lapic/lapic.ts';

export class FakeVcpu implements LapicVcpu {
  readonly id: number;
  readonly time: HostTime;
  readonly tscKhz = 1_000_000;
  apicBase: bigint;
  hasX2apic = true;
  hasTscDeadline = true;
  nmis = 0;
  kicks = 0;

  constructor(id: number, time: HostTime) {
    this.id = id;
    this.time = time;
    this.apicBase = id === 0 ? 0xfee00900n : 0xfee00800n;
  }
  get guestTsc(): bigint {
    return BigInt(this.time.now());
  }
  kick(): void {
    this.kicks++;
  }
  queueNmi(): void {
    this.nmis++;
  }
}

export class LapicBench {
  readonly time = new HostTime(() => {});
  readonly controller: InterruptController;
  readonly lapics: Lapic[];

  constructor(ids: readonly number[] = [0], pins = 0) {
    this.controller = new InterruptController(pins);
    this.lapics = ids.map((id) => {
      const lapic = new Lapic(new FakeVcpu(id, this.time), this.controller);
      lapic.reset('power-on', id === 0 ? 'extint' : 'masked');
      this.controller.add(lapic);
      return lapic;
    });
    this.controller.mapChanged();
  }

  get lapic(): Lapic {
    return this.lapics[0]!;
  }
  vcpu(index = 0): FakeVcpu {
    return this.lapics[index]!.vcpu as FakeVcpu;
  }

  /** Software-enables all of them: the spurious-interrupt register. */
  enable(): this {
    for (const lapic of this.lapics) this.write(0xf0, 0x1ff, lapic);
    return this;
  }
  /** A store to the xAPIC page. */
  write(offset: number, value: number, lapic = this.lapic): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value >>> 0, true);
    lapic.writePage(offset, bytes);
  }
  /** A load of 4 bytes; 0xeeeeeeee where no register answers. */
  read(offset: number, lapic = this.lapic): number {
    const bytes = new Uint8Array(4).fill(0xee);
    lapic.readPage(offset, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }
  base(value: bigint, index = 0): void {
    const vcpu = this.vcpu(index);
    const old = vcpu.apicBase;
    vcpu.apicBase = value;
    this.lapics[index]!.baseChanged(old);
  }
  /** x2APIC mode, software-enabled. */
  x2apic(): this {
    for (const [index, lapic] of this.lapics.entries()) {
      this.base(this.vcpu(index).apicBase | 0x400n, index);
      lapic.writeMsr(0xf0, 0x1ffn);
    }
    return this;
  }
  /** Time passes, as if instructions did. */
  pass(ns: number): void {
    this.time.leave(ns);
    this.time.expire();
  }
  /** Takes and ends the interrupt that is due; −1: none. */
  take(lapic = this.lapic): number {
    const vector = lapic.pendingVector();
    if (vector >= 0) lapic.acknowledge(vector);
    return vector;
  }
  /** Vectors that wait in each APIC: the highest. */
  requests(): number[] {
    return this.lapics.map((lapic) => lapic.highestRequest());
  }
}
