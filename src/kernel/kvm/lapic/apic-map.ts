/**
 * Where messages go: KVM's map from destinations to local APICs (Linux arch/x86/kvm/lapic.c, kvm_recalculate_apic_map and
 * kvm_apic_map_get_dest_lapic), and the match of one APIC with one destination where the map does not serve (kvm_apic_match_dest). The map
 * is observable: a lowest-priority message is hashed over the bits of its destination, and whether nobody is there is 0 by the map, −1 without.
 */
import { APIC, DFR_CLUSTER, DFR_FLAT, SHORTHAND } from '../../../abi/apic.ts';
import type { Lapic } from './lapic.ts';
import type { InterruptMessage } from './message.ts';

export const BROADCAST = 0xff;
export const X2APIC_BROADCAST = 0xffff_ffff;

type LogicalMode = 'none-enabled' | 'x2apic' | 'flat' | 'cluster' | 'mixed';

/** KVM_CAP_X2APIC_API's choices. */
export interface ApicFormat {
  readonly ids32: boolean;
  readonly broadcastQuirk: boolean;
}

export class ApicMap {
  readonly #physical = new Map<number, Lapic>();
  /** By cluster × 16 + bit; cluster 0 for flat. */
  readonly #logical = new Map<number, Lapic>();
  #mode: LogicalMode = 'none-enabled';
  #maxId = 255;

  /** The map of APICs that are enabled in their base. `undefined`: two have the same id, so there is no map. */
  static of(lapics: readonly Lapic[], format: ApicFormat): ApicMap | undefined {
    const map = new ApicMap();
    const present = lapics.filter((lapic) => lapic.hardwareEnabled);
    for (const { vcpu } of present) map.#maxId = Math.max(map.#maxId, vcpu.id);
    for (const lapic of present) {
      if (!map.#addPhysical(lapic, format)) return undefined;
      map.#addLogical(lapic);
    }
    return map;
  }

  #addPhysical(lapic: Lapic, format: ApicFormat): boolean {
    const { id } = lapic.vcpu;
    if (format.ids32) {
      if (lapic.isX2apic || id > 0xff) this.#physical.set(id, lapic);
      if (!lapic.isX2apic && !this.#physical.has(lapic.xapicId)) this.#physical.set(lapic.xapicId, lapic);
      return true;
    }
    const physical = lapic.isX2apic ? id : lapic.xapicId;
    if (this.#physical.has(physical)) return false;
    this.#physical.set(physical, lapic);
    return true;
  }

  #addLogical(lapic: Lapic): void {
    const ldr = lapic.register(APIC.LDR);
    if (!lapic.softwareEnabled || ldr === 0) return;
    const xapicMode = lapic.register(APIC.DFR) === DFR_FLAT ? 'flat' : 'cluster';
    const mode: LogicalMode = lapic.isX2apic ? 'x2apic' : xapicMode;
    if (this.#mode === 'none-enabled') this.#mode = mode;
    else if (this.#mode !== mode) this.#mode = 'mixed';
    if (mode === 'x2apic') return;
    const id = ldr >>> 24;
    const bits = mode === 'flat' ? id : id & 15;
    if (bits === 0) return;
    const key = (mode === 'flat' ? 0 : (id >>> 4) * 16) + 31 - Math.clz32(bits & -bits);
    if ((bits & (bits - 1)) !== 0 || this.#logical.has(key)) this.#mode = 'mixed';
    else this.#logical.set(key, lapic);
  }

  /** The APICs of a message without shorthand. `undefined`: the map cannot tell. */
  find(message: InterruptMessage, source: Lapic | undefined, format: ApicFormat): Lapic[] | undefined {
    if (this.#isBroadcast(message.destination, source, format)) return undefined;
    if (!message.logical) {
      const lapic = this.#physical.get(message.destination);
      return lapic === undefined ? [] : [lapic];
    }
    const cluster = this.#cluster(message.destination);
    if (cluster === undefined) return undefined;
    const { bits, at } = cluster;
    if (!isLowestPriority(message)) return bits.map(at).filter((lapic) => lapic !== undefined);
    if (bits.length === 0) return [];
    const chosen = at(bits[message.vector % bits.length]!);
    return chosen === undefined ? [] : [chosen];
  }

  #isBroadcast(destination: number, source: Lapic | undefined, format: ApicFormat): boolean {
    if (!format.broadcastQuirk)
      return (destination === BROADCAST && this.#mode !== 'x2apic') || destination === X2APIC_BROADCAST;
    return destination === (source?.isX2apic === true ? X2APIC_BROADCAST : BROADCAST);
  }

  /** kvm_apic_map_get_logical_dest */
  #cluster(destination: number): { bits: number[]; at: (bit: number) => Lapic | undefined } | undefined {
    switch (this.#mode) {
      case 'none-enabled':
        return { bits: [], at: () => undefined };
      case 'x2apic': {
        const first = (destination >>> 16) * 16;
        const size = Math.max(0, Math.min(this.#maxId - first + 1, 16));
        return { bits: bitsOf(destination, size), at: (bit) => this.#physical.get(first + bit) };
      }
      case 'flat':
        return { bits: bitsOf(destination, 8), at: (bit) => this.#logical.get(bit) };
      case 'cluster': {
        const first = ((destination >>> 4) & 15) * 16;
        return { bits: bitsOf(destination, 4), at: (bit) => this.#logical.get(first + bit) };
      }
      case 'mixed':
        return undefined;
    }
  }
}

const bitsOf = (mask: number, count: number): number[] =>
  Array.from({ length: count }, (_, bit) => bit).filter((bit) => ((mask >>> bit) & 1) !== 0);

export const isLowestPriority = (message: InterruptMessage): boolean =>
  message.delivery === 0x100 || message.redirectionHint;

/** kvm_apic_match_dest: whether `target` is meant, without the map. */
export function matches(
  target: Lapic,
  message: Pick<InterruptMessage, 'shorthand' | 'destination' | 'logical'>,
  source: Lapic | undefined,
  format: ApicFormat,
): boolean {
  switch (message.shorthand) {
    case SHORTHAND.SELF:
      return target === source;
    case SHORTHAND.ALL:
      return true;
    case SHORTHAND.OTHERS:
      return target !== source;
  }
  const quirk = format.broadcastQuirk && source === undefined && target.isX2apic;
  const destination = quirk && message.destination === BROADCAST ? X2APIC_BROADCAST : message.destination;
  if (destination === (target.isX2apic ? X2APIC_BROADCAST : BROADCAST)) return true;
  return message.logical ? matchesLogical(target, destination) : matchesPhysical(target, destination);
}

const matchesPhysical = (target: Lapic, destination: number): boolean =>
  destination === (target.isX2apic || destination > 0xff ? target.vcpu.id : target.xapicId);

function matchesLogical(target: Lapic, destination: number): boolean {
  const ldr = target.register(APIC.LDR);
  if (target.isX2apic) return ldr >>> 16 === destination >>> 16 && (ldr & destination & 0xffff) !== 0;
  const id = ldr >>> 24;
  switch (target.register(APIC.DFR)) {
    case DFR_FLAT:
      return (id & destination) !== 0;
    case DFR_CLUSTER:
      return id >>> 4 === destination >>> 4 && (id & destination & 15) !== 0;
    default:
      return false;
  }
}
