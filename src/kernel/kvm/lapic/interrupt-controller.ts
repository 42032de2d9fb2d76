/**
 * A VM's interrupt controller in the kernel: local APICs here, IOAPIC and PIC in user space (KVM_CAP_SPLIT_IRQCHIP; Linux
 * arch/x86/kvm/irq.c, irq_comm.c, virt/kvm/irqchip.c). Messages come from local APICs, from KVM_SIGNAL_MSI, and from KVM_IRQ_LINE by
 * the routes of KVM_SET_GSI_ROUTING; the EOI of a level-triggered vector that a route of a reserved IOAPIC pin has goes to user space.
 *
 * Left out: PIC, IOAPIC and PIT in the kernel (KVM_CREATE_IRQCHIP), irqfd, Hyper-V and Xen routes.
 */
import { DELIVERY, SHORTHAND } from '../../../abi/apic.ts';
import { KVM_X2APIC_API } from '../../../abi/kvm.ts';
import { LinuxError } from '../../../base/errors.ts';
import type { GsiRoute, MsiMessage } from '../../interface.ts';
import { ApicMap, BROADCAST, isLowestPriority, matches } from './apic-map.ts';
import type { Lapic } from './lapic.ts';
import { type InterruptMessage, type Msi, messageOfMsi } from './message.ts';

/** KVM_MAX_IRQ_ROUTES */
export const MAX_IRQ_ROUTES = 4096;
const MAX_ROUTES = MAX_IRQ_ROUTES;
const MSI_VALID_DEVID = 1;
const ROUTE_MSI = 2;

/** How KVM_CAP_X2APIC_API deals with the guest's wish that EOIs are not broadcast. */
type EoiSuppression = 'quirk' | 'enabled' | 'disabled';

interface MsiRoute extends Msi {
  readonly gsi: number;
}

export class InterruptController {
  readonly #lapics: Lapic[] = [];
  readonly #pins: number;
  #map: ApicMap | undefined;
  #mapIsOld = true;
  readonly #format = { ids32: false, broadcastQuirk: true };
  #suppression: EoiSuppression = 'quirk';
  #routes: readonly MsiRoute[] = [];
  /** Level-triggered vectors whose EOI user space's IOAPIC wants, by local APIC. */
  readonly #handled = new Map<Lapic, { vectors: Set<number>; stale: number }>();

  /** `pins`: routes reserved for the pins of user space's IOAPIC. */
  constructor(pins: number) {
    this.#pins = pins;
  }

  /**
   * A new vCPU, whose APIC has been reset; they are searched in this order. As in Linux, the map was made before the vCPU is there, and does not
   * have it until some APIC changes.
   */
  add(lapic: Lapic): void {
    this.#currentMap();
    this.#lapics.push(lapic);
    this.#scanRoutes();
  }

  /** Bit 24 of the version register. */
  get advertisesEoiSuppression(): boolean {
    return this.#suppression !== 'disabled';
  }

  /** KVM_CAP_X2APIC_API, with flags that exist. */
  setX2apicApi(flags: bigint): void {
    if ((flags & KVM_X2APIC_API.USE_32BIT_IDS) !== 0n) this.#format.ids32 = true;
    if ((flags & KVM_X2APIC_API.DISABLE_BROADCAST_QUIRK) !== 0n) this.#format.broadcastQuirk = false;
    if ((flags & KVM_X2APIC_API.ENABLE_SUPPRESS_EOI_BROADCAST) !== 0n) this.#suppression = 'enabled';
    if ((flags & KVM_X2APIC_API.DISABLE_SUPPRESS_EOI_BROADCAST) !== 0n) this.#suppression = 'disabled';
    this.mapChanged();
  }

  get uses32BitIds(): boolean {
    return this.#format.ids32;
  }

  /** Ids, logical destinations or enable bits of an APIC are no longer what they were. */
  mapChanged(): void {
    this.#mapIsOld = true;
  }

  /** kvm_irq_delivery_to_apic: how many took it; −1: nobody was meant. */
  deliver(message: InterruptMessage, source?: Lapic): number {
    if (message.shorthand === SHORTHAND.SELF) return source?.accept(message) === true ? 1 : 0;
    if (message.shorthand === SHORTHAND.NONE) {
      const found = this.#currentMap()?.find(message, source, this.#format);
      if (found !== undefined) return acceptedBy(found, message);
    }
    return this.#deliverBySearch(message, source);
  }

  #deliverBySearch(message: InterruptMessage, source: Lapic | undefined): number {
    const everybody = !message.logical && message.destination === BROADCAST;
    const lowest = isLowestPriority(message);
    const asked = everybody && lowest ? { ...message, delivery: DELIVERY.FIXED } : message;
    const meant = this.#lapics.filter(
      (lapic) => lapic.hardwareEnabled && matches(lapic, asked, source, this.#format),
    );
    if (!isLowestPriority(asked)) return meant.length === 0 ? -1 : acceptedBy(meant, asked);
    const able = meant.filter((lapic) => lapic.softwareEnabled);
    return able.length === 0 ? -1 : acceptedBy([able[asked.vector % able.length]!], asked);
  }

  #currentMap(): ApicMap | undefined {
    if (this.#mapIsOld) {
      this.#map = ApicMap.of(this.#lapics, this.#format);
      this.#mapIsOld = false;
      this.#scanRoutes();
    }
    return this.#map;
  }

  // Messages and lines.

  /** KVM_SIGNAL_MSI: how many APICs took it; 0 blocked; −1 nobody was meant. Errors: EINVAL (flags, address_hi). */
  signalMsi(msi: MsiMessage): number {
    if ((msi.flags & ~MSI_VALID_DEVID) !== 0)
      throw new LinuxError('EINVAL', `KVM_SIGNAL_MSI: flags ${msi.flags}`);
    this.#checkMsi(msi, 'KVM_SIGNAL_MSI');
    return this.deliver(this.#message(msi));
  }

  /** KVM_IRQ_LINE: what KVM_IRQ_LINE_STATUS answers, −1 where the line leads nowhere. */
  setLine(gsi: number, level: number): number {
    let status = -1;
    for (const route of this.#routes) {
      if (route.gsi !== gsi || level === 0) continue;
      const taken = this.deliver(this.#message(route));
      if (taken >= 0) status = taken + Math.max(status, 0);
    }
    return status;
  }

  /** KVM_SET_GSI_ROUTING replaces all routes. Errors: EINVAL (number, flags, type, GSI, two routes of a GSI). */
  setRoutes(routes: readonly GsiRoute[], flags: number): void {
    const refuse = (what: string): never => {
      throw new LinuxError('EINVAL', `KVM_SET_GSI_ROUTING: ${what}`);
    };
    if (flags !== 0) refuse(`flags ${flags}, want 0`);
    const seen = new Set<number>();
    this.#routes = routes.map((route) => {
      if (route.gsi >= MAX_ROUTES) refuse(`GSI ${route.gsi}, want less than ${MAX_ROUTES}`);
      if (route.type !== ROUTE_MSI) refuse(`route of type ${route.type}: a split irqchip has MSI routes (2)`);
      if ((route.flags & ~MSI_VALID_DEVID) !== 0) refuse(`flags ${route.flags} of a route`);
      if (seen.has(route.gsi)) refuse(`two routes of GSI ${route.gsi}`);
      seen.add(route.gsi);
      this.#checkMsi(route.msi, 'KVM_SET_GSI_ROUTING');
      return { gsi: route.gsi, ...route.msi };
    });
    this.#scanRoutes();
  }

  #checkMsi(msi: Msi, call: string): void {
    if (this.#format.ids32 && (msi.addressHi & 0xff) !== 0)
      throw new LinuxError('EINVAL', `${call}: address_hi ${msi.addressHi}, bits 7:0 want 0 with 32-bit ids`);
  }

  #message(msi: Msi): InterruptMessage {
    return messageOfMsi(msi, this.#format.ids32 ? '32-bit' : 'xapic');
  }

  // EOI.

  /** kvm_ioapic_send_eoi. `suppressed`: the guest asked for no broadcast. */
  endOfInterrupt(lapic: Lapic, vector: number, suppressed: boolean): void {
    this.#currentMap();
    const handled = this.#handled.get(lapic);
    if (handled?.vectors.has(vector) !== true) return;
    if (handled.stale === vector) this.#scanRoutes();
    if (suppressed && this.#suppression === 'enabled') return;
    lapic.pendingIoapicEoi = vector;
  }

  /** kvm_scan_ioapic_routes: who must tell user space of which EOIs. */
  #scanRoutes(): void {
    const routes = this.#routes.filter(({ gsi }) => gsi < this.#pins).map((route) => this.#message(route));
    for (const lapic of this.#lapics) {
      const handled = { vectors: new Set<number>(), stale: -1 };
      for (const message of routes) {
        if (!message.level) continue;
        if (matches(lapic, message, undefined, this.#format)) handled.vectors.add(message.vector);
        else if (lapic.awaitsEoi(message.vector)) {
          handled.vectors.add(message.vector);
          handled.stale = Math.max(handled.stale, message.vector);
        }
      }
      this.#handled.set(lapic, handled);
    }
  }
}

const acceptedBy = (lapics: readonly Lapic[], message: InterruptMessage): number =>
  lapics.reduce((count, lapic) => count + (lapic.accept(message) ? 1 : 0), 0);
